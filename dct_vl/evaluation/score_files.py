"""Write scores in lmms-eval's shape: ``{date}_results.json``, ``{date}_samples_{task}.jsonl``."""

from __future__ import annotations

import hashlib
import math
import statistics
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from dct_vl.evaluation.score import Report

#: raised when a task's prompt, reader or metric changes so that scores differ
TASK_VERSION = 1.2


def write_results(report: Report, folder: Path, *, model_name: str = "") -> tuple[Path, Path]:
    """Write both files and return their paths (results, samples)."""
    folder.mkdir(parents=True, exist_ok=True)
    name = report.task.name
    moment = datetime.now()
    while (results := folder / f"{moment:%Y%m%d_%H%M%S}_results.json").exists():
        moment += timedelta(seconds=1)
    samples = folder / f"{moment:%Y%m%d_%H%M%S}_samples_{name}.jsonl"
    lines = sample_lines(report)
    samples.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    hashes = "".join(f"sample_{place}{line['doc_hash']}" for place, line in enumerate(lines))
    content = results_of(report) | {
        "date": f"{moment:%Y%m%d_%H%M%S}",
        "task_hashes": {name: _sha(hashes)},
        "model_source": "dct-vl",
        "model_name": model_name,
        "model_name_sanitized": model_name.replace("/", "__"),
    }
    results.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    return results, samples


def results_of(report: Report) -> dict[str, Any]:
    """Content of the results file but for what the moment of writing adds."""
    task = report.task
    numbers: dict[str, Any] = {"alias": task.name}
    for metric, total in report.scores.total.items():
        numbers[f"{metric},none"] = total
        numbers[f"{metric}_stderr,none"] = standard_error(report, metric)
    bounds = report.pixel_bounds
    only = bounds[0] if len(bounds) == 1 else (None, None)
    numbers |= {
        "mean_visual_tokens": report.mean_visual_tokens,
        "min_pixels": only[0],
        "max_pixels": only[1],
    }
    return {
        "results": {task.name: numbers},
        "group_subtasks": {task.name: []},
        "configs": {
            task.name: {
                "task": task.name,
                "output_type": "generate_until",
                "metric_list": [
                    {"metric": metric, "higher_is_better": task.higher_is_better}
                    for metric in report.scores.total
                ],
                "generation_kwargs": {"max_new_tokens": report.items[0].max_new_tokens},
                "metadata": [{"version": TASK_VERSION}],
            }
        },
        "versions": {task.name: TASK_VERSION},
        "n-shot": {task.name: 0},
        "higher_is_better": {task.name: dict.fromkeys(report.scores.total, task.higher_is_better)},
        "n-samples": {
            task.name: {
                "original": len(report.items) + report.num_without_reference,
                "effective": len(report.items),
            }
        },
        "problems": {
            task.name: {
                "missing": report.missing,
                "unknown": report.unknown,
                "bad_lines": report.bad_lines,
                "num_without_reference": report.num_without_reference,
                "pixel_bounds": [list(pair) for pair in bounds],
            }
        },
    }


def sample_lines(report: Report) -> list[dict[str, Any]]:
    """One object an item, in their order."""
    rows = zip(report.items, report.predictions, report.scores.each, strict=True)
    return [
        {
            "doc_id": place,
            "key": item.key,
            "input": item.question,
            "target": orjson.dumps(item.references).decode(),
            "filtered_resps": [prediction.answer],
            "doc_hash": _sha(orjson.dumps([item.key, item.question, item.references]).decode()),
            "group": item.group,
            "num_visual_tokens": prediction.num_visual_tokens,
            **scores,
        }
        for place, (item, prediction, scores) in enumerate(rows)
    ]


def standard_error(report: Report, metric: str) -> float | str:
    """Standard error of a score that is the mean of its items', "N/A" for others, as there."""
    values = [scores[metric] for scores in report.scores.each if metric in scores]
    if len(values) < 2 or len(values) != len(report.items):
        return "N/A"
    if not math.isclose(statistics.fmean(values), report.scores.total[metric], abs_tol=1e-9):
        return "N/A"
    return statistics.stdev(values) / math.sqrt(len(values))


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
