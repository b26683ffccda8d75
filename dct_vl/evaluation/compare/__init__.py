"""Runs side by side on one page: accuracy against cost, intervals, and where they disagree.

`read_runs(folders, …)` reads finished runs and the files of their answers; `write_comparison(runs,
output, …)` makes compare.html and compare.json.
"""

from dct_vl.evaluation.compare.report import write_comparison
from dct_vl.evaluation.compare.runs import ComparedRun, read_runs

__all__ = ["ComparedRun", "read_runs", "write_comparison"]
