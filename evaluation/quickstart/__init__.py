"""The quickstart's report: what was learnt, at what cost, against which control."""

from evaluation.quickstart.data import (
    ExportProof,
    QuickstartResult,
    QuickstartRun,
    SamplePicture,
)
from evaluation.quickstart.report import write_quickstart_report
from evaluation.quickstart.resume import ResumeProof, resume_difference

__all__ = [
    "ExportProof",
    "QuickstartResult",
    "QuickstartRun",
    "ResumeProof",
    "SamplePicture",
    "resume_difference",
    "write_quickstart_report",
]
