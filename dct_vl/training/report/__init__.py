"""Self-contained HTML pages about runs: plots, page frame, and the summary of one run."""

from dct_vl.pages.charts import Area, Line, Point, area_chart, line_chart, point_chart
from dct_vl.pages.page import picture_uri, write_page
from dct_vl.runs.series import first_and_last_loss, steady_steps, steady_throughput
from dct_vl.training.report.run_facts import read_validation
from dct_vl.training.report.run_summary import SUMMARY_NAME, try_run_summary, write_run_summary

__all__ = [
    "SUMMARY_NAME",
    "Area",
    "Line",
    "Point",
    "area_chart",
    "first_and_last_loss",
    "line_chart",
    "picture_uri",
    "point_chart",
    "read_validation",
    "steady_steps",
    "steady_throughput",
    "try_run_summary",
    "write_page",
    "write_run_summary",
]
