"""Runs that differ in their tokenizer, put side by side: accuracy against tokens, FLOPs and speed.

`collect_study(folder)` reads finished runs and their `words.jsonl`; `write_study(runs, output)`
makes the table, the plots and a JSON of all figures.
"""

from dct_vl.evaluation.study.collect import StudyRun, collect_study
from dct_vl.evaluation.study.report import write_study

__all__ = ["StudyRun", "collect_study", "write_study"]
