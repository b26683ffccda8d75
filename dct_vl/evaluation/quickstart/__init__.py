"""The quickstart's report: what was learnt, at what cost, against which control."""

from dct_vl.evaluation.quickstart.data import (
    ExportProof,
    QuickstartResult,
    QuickstartRun,
    SamplePicture,
)
from dct_vl.evaluation.quickstart.report import write_quickstart_report
from dct_vl.evaluation.quickstart.resume import ResumeProof, resume_difference

__all__ = [
    "ExportProof",
    "QuickstartResult",
    "QuickstartRun",
    "ResumeProof",
    "SamplePicture",
    "resume_difference",
    "write_quickstart_report",
]
