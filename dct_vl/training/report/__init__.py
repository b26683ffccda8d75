"""What a run's folder says: figures of its steps, and a page about the run."""

from dct_vl.runs.series import first_and_last_loss, steady_steps, steady_throughput
from dct_vl.training.report.run_facts import read_validation
from dct_vl.training.report.run_summary import SUMMARY_NAME, try_run_summary, write_run_summary

__all__ = [
    "SUMMARY_NAME",
    "first_and_last_loss",
    "read_validation",
    "steady_steps",
    "steady_throughput",
    "try_run_summary",
    "write_run_summary",
]
