"""Scores of single questions, from any file of them that this project writes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from dct_vl.inputs.chat import IMAGE_MARK
from dct_vl.runs.result_files import ANSWERS_NAME, WORDS_NAME

_SAMPLES = re.compile(r"(?P<date>.+)_samples_(?P<task>.+)\.jsonl$")
#: whole numbers in a line of a samples file that are no score
_NO_SCORE = {"doc_id", "num_visual_tokens"}
_AGAIN = "write it again with `dct-vl answers`, `words` or `score --json`"
ANSWERS_METRIC = "exact answers"
WORDS_METRIC = "words right"


@dataclass(frozen=True, kw_only=True)
class ItemScore:
    """One question, or one sample whose words were counted."""

    key: str
    #: position of the answer in the conversation; 0 where a key is asked once
    turn: int = 0
    source: str
    #: points, and how many there are to get: the share of a set is Σ got / Σ of
    got: float
    of: float = 1.0
    #: None where the file does not say
    num_visual_tokens: int | None
    #: None where the file does not hold it
    question: str | None = None
    truth: str | None = None
    answer: str | None = None
    #: marks of images in the question
    num_images: int = 0

    @property
    def id(self) -> tuple[str, int]:
        """What the same question is found by in another run's file."""
        return self.key, self.turn


_Parser = Callable[[dict[str, Any]], ItemScore]


@dataclass(frozen=True, kw_only=True)
class ResultFile:
    """The scores of one run on one set of questions."""

    path: Path
    metric: str
    #: by `ItemScore.id`, in the order of the file
    items: dict[tuple[str, int], ItemScore]
    higher_is_better: bool = True
    #: keys are those of samples in the run's shards; False for a benchmark's items
    is_from_shards: bool = True
    #: (min_pixels, max_pixels) that the answers were made with, where that is written down
    pixel_bounds: tuple[int, int] | None = None
    #: training step of the model that answered, where that is written down
    step: int | None = None


def find_results(folder: Path) -> dict[str, Path]:
    """Files of scores in a run's folder by the name of the set: answers, words, a task's name.

    Of several files of one task the newest counts.
    """
    found = {
        path.stem: path
        for path in sorted(folder.glob("answers*.jsonl"))
        if not path.name.endswith(".rejected.jsonl")
    }
    if (folder / WORDS_NAME).is_file():
        found[Path(WORDS_NAME).stem] = folder / WORDS_NAME
    for path in sorted(folder.glob("*_samples_*.jsonl")):
        match = _SAMPLES.match(path.name)
        if match:
            found[match["task"]] = path
    return found


def set_of(path: Path) -> str:
    """The set that a file named by hand belongs to: its task's, or that of answers."""
    match = _SAMPLES.match(path.name)
    return match["task"] if match else Path(ANSWERS_NAME).stem


def read_results(path: Path, metric: str | None = None) -> ResultFile:
    """Read the lines of `dct-vl answers`, `dct-vl words` or `dct-vl score --json`.

    `metric` is the score of a samples file; the task's headline, or the only one there, by default.

    Raises:
        ValueError: the file cannot be read, is none of these, or names a question twice.
    """
    lines = _lines(path)
    first = lines[0]
    parse: _Parser
    higher_is_better, bounds = True, None
    if "filtered_resps" in first:
        match = _SAMPLES.match(path.name)
        task = match["task"] if match else ""
        name, higher_is_better = _metric_of(path, first, task, metric)
        bounds = _bounds_beside(path, match["date"] if match else "", task)
        parse = partial(_of_sample, metric=name, task=task)
    elif "correct" in first:
        name, parse = ANSWERS_METRIC, _of_answer
    elif "num_words" in first:
        name, parse = WORDS_METRIC, _of_words
    else:
        raise ValueError(
            f"{path} has no scores: its first line holds {', '.join(map(str, first)) or 'nothing'}."
            + (
                " Answers of `dct-vl generate` are scored by `dct-vl score TASK "
                "--predictions FILE --data DATA --json FOLDER`"
                if "answer" in first
                else " Expected lines of `dct-vl answers`, `words` or `score --json`"
            )
        )
    items = [_parse(path, number, line, parse) for number, line in enumerate(lines, start=1)]
    items = [item for item in items if item.of]
    by_id = {item.id: item for item in items}
    if len(by_id) != len(items):
        (twice, _), *_ = Counter(item.id for item in items).most_common(1)
        raise ValueError(f"{path} has {twice[0]} (turn {twice[1]}) twice: write it again")
    if not by_id:
        raise ValueError(f"{path} has no word to score: ask about samples that have answers")
    return ResultFile(
        path=path,
        metric=name,
        items=by_id,
        higher_is_better=higher_is_better,
        is_from_shards="filtered_resps" not in first,
        pixel_bounds=bounds,
        step=first["step"] if isinstance(first.get("step"), int) else None,
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        texts = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; {_AGAIN}") from error
    lines = []
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            line = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number} is no JSON ({error}), as of a cut-off file: {_AGAIN}"
            ) from error
        if not isinstance(line, dict):
            raise ValueError(f"{path}, line {number} is a {type(line).__name__}, not an object")
        lines.append(line)
    if not lines:
        raise ValueError(f"{path} is empty: {_AGAIN}")
    return lines


def _parse(path: Path, number: int, line: dict[str, Any], parse: _Parser) -> ItemScore:
    try:
        item = parse(line)
        if not (math.isfinite(item.got) and math.isfinite(item.of)):
            raise ValueError(f"{item.got} of {item.of} is no finite score")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}, line {number}: {error!r}; expected the fields of its first line"
        ) from error
    return item


def _of_answer(line: dict[str, Any]) -> ItemScore:
    return ItemScore(
        key=str(line["key"]),
        turn=int(line["turn"]),
        source=str(line["source"] or "unnamed"),
        got=float(line["correct"]),
        num_visual_tokens=int(line["num_visual_tokens"]),
        question=_plain(line["question"]),
        truth=line["truth"],
        answer=line["answer"],
        num_images=line["question"].count(IMAGE_MARK),
    )


def _of_words(line: dict[str, Any]) -> ItemScore:
    return ItemScore(
        key=str(line["key"]),
        source=str(line["source"] or "unnamed"),
        got=float(line["num_right"]),
        of=float(line["num_words"]),
        num_visual_tokens=int(line["num_visual_tokens"]),
        answer=f"{line['num_right']} of {line['num_words']} words right",
    )


def _of_sample(line: dict[str, Any], metric: str, task: str) -> ItemScore:
    seen = line.get("num_visual_tokens")
    said = line["filtered_resps"]
    question = line.get("input")
    return ItemScore(
        key=str(line["key"] if "key" in line else line["doc_id"]),
        source=str(line.get("group") or task or "unnamed"),
        got=float(line[metric]),
        num_visual_tokens=None if seen is None else int(seen),
        question=_plain(question) if isinstance(question, str) else None,
        truth=_references(line.get("target")),
        answer=str(said[0]) if isinstance(said, list) and said else str(said),
    )


def _metric_of(path: Path, line: dict[str, Any], task: str, wanted: str | None) -> tuple[str, bool]:
    """(name, higher is better) of the score that is compared."""
    from dct_vl.evaluation.tasks.registry import TASKS

    known = next((one for one in TASKS if one.name == task), None)
    higher = known.higher_is_better if known else True
    scores = [
        name
        for name, value in line.items()
        if isinstance(value, int | float) and name not in _NO_SCORE
    ]
    if wanted is not None:
        if wanted not in scores:
            raise ValueError(f"{path} has no score {wanted!r}; its scores are {', '.join(scores)}")
        return wanted, higher
    if known and known.headline in scores:
        return known.headline, higher
    if len(scores) == 1:
        return scores[0], higher
    raise ValueError(
        f"{path} has the scores {', '.join(scores) or '(none)'}: choose one with --metric"
    )


def _bounds_beside(path: Path, date: str, task: str) -> tuple[int, int] | None:
    """Pixel bounds from the results file that belongs to a samples file; None where it has none."""
    results = path.with_name(f"{date}_results.json")
    if not results.is_file():
        return None
    try:
        numbers = orjson.loads(results.read_bytes()).get("results", {}).get(task, {})
        low, high = numbers.get("min_pixels"), numbers.get("max_pixels")
        return None if low is None or high is None else (int(low), int(high))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{results} cannot be read ({error!r}): score {task} again, or remove the file; the "
            f"scores in {path.name} are compared without their pixel bounds then"
        ) from error


def _plain(question: str) -> str:
    return question.replace(IMAGE_MARK, "").strip()


def _references(target: object) -> str | None:
    """True answers, which a samples file holds as a JSON list or as a text."""
    if not isinstance(target, str):
        return None if target is None else str(target)
    try:
        listed = orjson.loads(target)
    except orjson.JSONDecodeError:
        return target
    if not isinstance(listed, list):
        return target
    flat = (one for entry in listed for one in (entry if isinstance(entry, list) else [entry]))
    return " | ".join(dict.fromkeys(map(str, flat)))
