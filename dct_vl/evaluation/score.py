"""Score predictions against a task's true answers, and write lmms-eval's files; no model needed."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from dct_vl.evaluation.tasks.task import Task, TaskItem, TaskScores


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model answered to one item, and what it saw, where the line says so."""

    key: str
    answer: str
    num_visual_tokens: int | None = None
    #: bounds of the image's area in pixels that the answer was made with
    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A file of predictions."""

    by_key: dict[str, Prediction]
    #: "line 7: …" for every line that was left out
    bad_lines: list[str]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Scores of a task, and how far they can be trusted."""

    task: Task
    scores: TaskScores
    items: list[TaskItem]
    #: as long as `items`; an empty answer where there was no prediction
    predictions: list[Prediction]
    #: keys of items without a prediction; they count as an empty answer unless left out
    missing: list[str]
    #: keys of predictions that name no item
    unknown: list[str]
    bad_lines: list[str]
    #: number of items without a true answer, which no score covers
    num_without_reference: int

    @property
    def mean_visual_tokens(self) -> float | None:
        """Mean over the predictions that carry their number."""
        found = [p.num_visual_tokens for p in self.predictions if p.num_visual_tokens is not None]
        return sum(found) / len(found) if found else None

    @property
    def pixel_bounds(self) -> list[tuple[int | None, int | None]]:
        """Every (min_pixels, max_pixels) that occurs; more than one does not make one score."""
        found = {(p.min_pixels, p.max_pixels) for p in self.predictions}
        return sorted((b for b in found if b != (None, None)), key=str)


def read_predictions(path: Path) -> Predictions:
    """Read ``{"key", "answer"}`` lines; ``num_visual_tokens``, ``min_pixels``, ``max_pixels`` too.

    A line that does not fit, or repeats a key, is left out and listed with its reason.

    Raises:
        ValueError: the file cannot be read, or no line of it fits.
    """
    by_key: dict[str, Prediction] = {}
    bad_lines = []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(f"predictions cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prediction = _prediction(orjson.loads(line))
            if prediction.key in by_key:
                raise ValueError(f"key {prediction.key!r} is there already; the first one counts")
        except ValueError as error:
            bad_lines.append(f"line {number}: {error}")
            continue
        by_key[prediction.key] = prediction
    if not by_key:
        first = f"; {bad_lines[0]}" if bad_lines else " and is empty"
        raise ValueError(f'{path} has no prediction ({{"key": …, "answer": …}} a line){first}')
    return Predictions(by_key=by_key, bad_lines=bad_lines)


def score_predictions(
    task: Task, items: Sequence[TaskItem], predictions: Predictions, *, only_answered: bool = False
) -> Report:
    """Score the items that have a true answer.

    `only_answered` leaves items without a prediction out instead of counting them as wrong.

    Raises:
        ValueError: nothing to score: no true answers, or no prediction names an item.
    """
    scored = [item for item in items if item.references]
    if not scored:
        raise ValueError(
            f"none of the {len(items)} items of {task.name} has a true answer (a test split whose "
            "answers are kept back?); score another split"
        )
    missing = [item.key for item in scored if item.key not in predictions.by_key]
    known = {item.key for item in items}
    unknown = [key for key in predictions.by_key if key not in known]
    if len(missing) == len(scored):
        raise ValueError(
            f"no prediction names an item of {task.name}: its keys are like {scored[0].key!r}, "
            f"those of the predictions like {next(iter(predictions.by_key))!r}"
        )
    if only_answered:
        scored = [item for item in scored if item.key in predictions.by_key]
    given = [
        predictions.by_key.get(item.key, Prediction(key=item.key, answer="")) for item in scored
    ]
    return Report(
        task=task,
        scores=task.score(scored, [prediction.answer for prediction in given]),
        items=scored,
        predictions=given,
        missing=missing,
        unknown=unknown,
        bad_lines=predictions.bad_lines,
        num_without_reference=sum(not item.references for item in items),
    )


def _prediction(entry: Any) -> Prediction:
    if not isinstance(entry, dict):
        raise ValueError(f"a {type(entry).__name__}; expected an object")
    key, answer = entry.get("key"), entry.get("answer")
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise ValueError(f"key is {key!r}; expected a string or an integer")
    if not isinstance(answer, str):
        raise ValueError(f"answer is {answer!r}; expected a string")
    return Prediction(
        key=str(key),
        answer=answer,
        **{name: _count(entry, name) for name in ("num_visual_tokens", "min_pixels", "max_pixels")},
    )


def _count(entry: dict[str, Any], name: str) -> int | None:
    number = entry.get(name)
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"{name} is {number!r}; expected a whole number of at least 0")
    return number


#: raised when a task's prompt, reader or metric changes so that scores differ
TASK_VERSION = 1.2


def write_results(report: Report, folder: Path, *, model_name: str = "") -> tuple[Path, Path]:
    """Write both files and return their paths (results, samples)."""
    folder.mkdir(parents=True, exist_ok=True)
    name, moment = report.task.name, datetime.now()
    while (results := folder / f"{moment:%Y%m%d_%H%M%S}_results.json").exists():
        moment += timedelta(seconds=1)
    samples = folder / f"{moment:%Y%m%d_%H%M%S}_samples_{name}.jsonl"
    lines = sample_lines(report)
    samples.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    hashes = "".join(f"sample_{number}{line['doc_hash']}" for number, line in enumerate(lines))
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
    low, high = bounds[0] if len(bounds) == 1 else (None, None)
    numbers |= {"mean_visual_tokens": report.mean_visual_tokens}
    numbers |= {"min_pixels": low, "max_pixels": high}
    higher = task.higher_is_better
    return {
        "results": {task.name: numbers},
        "group_subtasks": {task.name: []},
        "configs": {
            task.name: {
                "task": task.name,
                "output_type": "generate_until",
                "metric_list": [
                    {"metric": name, "higher_is_better": higher} for name in report.scores.total
                ],
                "generation_kwargs": {"max_new_tokens": report.items[0].max_new_tokens},
                "metadata": [{"version": TASK_VERSION}],
            }
        },
        "versions": {task.name: TASK_VERSION},
        "n-shot": {task.name: 0},
        "higher_is_better": {task.name: dict.fromkeys(report.scores.total, higher)},
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
    """Lines of the samples file: one object an item, in their order."""
    rows = zip(report.items, report.predictions, report.scores.each, strict=True)
    return [
        {
            "doc_id": number,
            "key": item.key,
            "input": item.question,
            "target": orjson.dumps(item.references).decode(),
            "filtered_resps": [prediction.answer],
            "doc_hash": _sha(orjson.dumps([item.key, item.question, item.references]).decode()),
            "group": item.group,
            "num_visual_tokens": prediction.num_visual_tokens,
            **scores,
        }
        for number, (item, prediction, scores) in enumerate(rows)
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
