"""Runs side by side: accuracy against cost, intervals, and where they disagree.

`read_runs(folders, …)` reads finished runs and the files of their answers; `write_comparison(runs,
output, …)` makes compare.html and compare.json. A study (many seeds, a table) and the quickstart's
report are made of the same parts.
"""

from dct_vl.evaluation.compare.report import write_comparison
from dct_vl.evaluation.compare.runs import ComparedRun, read_runs

__all__ = ["ComparedRun", "read_runs", "write_comparison"]
