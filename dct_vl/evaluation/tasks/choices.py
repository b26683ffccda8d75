"""Multiple choice: AI2D, MMVP, MMStar; and yes or no: POPE."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from dct_vl.evaluation.metrics.choice import parse_options
from dct_vl.evaluation.tasks.files import (
    ImageFolder,
    ReadOptions,
    TaskDataError,
    find_file,
    has_rows,
    read_jsonl,
    read_rows,
    row_image,
    value,
)
from dct_vl.evaluation.tasks.questions import SHORT_ANSWER, read_answer_rows
from dct_vl.evaluation.tasks.task import TaskItem, user_turn

#: lmms-eval's words, so that scores compare
LETTER_ONLY = "\nAnswer with the option's letter from the given choices directly."
TEST_FIRST = ("test", "val", "validation", "train")
#: MMVP's questions (from 1) whose published answers are swapped: github.com/tsb0601/MMVP/issues/30
MMVP_CORRECTIONS = {99: "B", 100: "A", 279: "B", 280: "A"}


def read_ai2d(path: Path, options: ReadOptions) -> Iterator[TaskItem]:
    """Rows with question, options (a list), answer (the position of the right one) and image."""
    for number, row in read_rows(path, options, ("ai2d", "ai2d_test"), TEST_FIRST):
        texts = tuple(str(option) for option in value(row, ("options",), path))
        answer = str(value(row, ("answer",), path)).strip()
        letter = ascii_uppercase[int(answer)] if answer.isdigit() else answer.upper()
        yield _choice(str(number), value(row, ("question",), path), texts, letter, row_image(row))


def read_mmvp(path: Path, options: ReadOptions) -> Iterator[TaskItem]:
    """``Questions.csv`` beside ``MMVP Images/``, or rows of the same columns.

    The group of a question is its pair: 1 and 2, 3 and 4, …
    """
    file = find_file(path, ("Questions.csv",))
    if file is not None:
        folder = ImageFolder(file, options, "MMVP Images", "images")
        with open(file, newline="", encoding="utf-8-sig") as text:
            for entry in csv.DictReader(text):
                index = int(value(entry, ("Index", "lndex"), file))
                names = [f"{index}.{ending}" for ending in ("jpg", "png", "jpeg")]
                yield _mmvp(index, entry, folder.find(*names))
        return
    for number, row in read_rows(path, options, ("MMVP", "mmvp_cache"), TEST_FIRST):
        index = next(
            (int(row[n]) for n in ("Index", "index") if row.get(n) is not None), number + 1
        )
        yield _mmvp(index, row, row_image(row))


def read_mmstar(path: Path, options: ReadOptions) -> Iterator[TaskItem]:
    """Rows with question (options in it), answer (a letter), category and image."""
    for number, row in read_rows(path, options, ("MMStar",), ("val", "validation", "test")):
        question = str(value(row, ("question",), path)).strip()
        yield TaskItem(
            key=str(row.get("index", number)),
            turns=user_turn(question + LETTER_ONLY),
            images=row_image(row),
            references=(str(value(row, ("answer",), path)).strip().upper(),),
            options=_options_in(question),
            group=str(row.get("category", "")),
        )


def read_pope(path: Path, options: ReadOptions) -> Iterator[TaskItem]:
    """POPE's own ``coco_pope_{random,popular,adversarial}.json`` (a JSON a line), or rows."""
    files = sorted(path.rglob("*pope_*.json")) if path.is_dir() else [path]
    if not files or has_rows(path):
        names = ("POPE", "pope_test")
        yield from read_answer_rows(
            path, options, names, ("test",), lambda question: question.strip() + SHORT_ANSWER
        )
        return
    for file in files:
        group = file.stem.rpartition("_")[2]
        folder = ImageFolder(path, options, "val2014", "images")
        for _, entry in read_jsonl(file):
            yield TaskItem(
                key=f"{group}-{value(entry, ('question_id',), file)}",
                turns=user_turn(str(value(entry, ("text",), file)).strip() + SHORT_ANSWER),
                images=folder.find(str(value(entry, ("image",), file))),
                references=(str(value(entry, ("label",), file)).strip().lower(),),
                group=group,
            )


def _choice(
    key: str,
    question: str,
    options: tuple[str, ...],
    answer: str,
    images: tuple[bytes | Path, ...],
    group: str = "",
) -> TaskItem:
    letters = ascii_uppercase[: len(options)]
    if answer not in letters or not answer:
        raise TaskDataError(f"question {key} has the answer {answer!r}; expected one of {letters}")
    lines = [f"{letter}. {text}" for letter, text in zip(letters, options, strict=True)]
    return TaskItem(
        key=key,
        turns=user_turn("\n".join([question.strip(), *lines]) + LETTER_ONLY),
        images=images,
        references=(answer,),
        options=options,
        group=group,
    )


def _mmvp(index: int, entry: dict[str, Any], images: tuple[bytes | Path, ...]) -> TaskItem:
    where = f"MMVP question {index}"
    options = parse_options(str(value(entry, ("Options", "options"), where)))
    answer = str(value(entry, ("Correct Answer", "answer"), where)).strip(" ().").upper()
    return _choice(
        str(index),
        str(value(entry, ("Question", "question"), where)),
        options,
        MMVP_CORRECTIONS.get(index, answer),
        images,
        group=str((index + 1) // 2),
    )


def _options_in(question: str) -> tuple[str, ...]:
    """MMStar writes "… Options: A: x, B: y, C: z, D: w" (also "A. x"); () where not."""
    tail = re.split(r"(?:Options|Choices):", question)[-1]
    pieces = re.split(r"(?:^|[\s,(])([A-H])[:.)]\s", f" {tail.strip()}")
    if len(pieces) < 5 or "".join(pieces[1::2]) != ascii_uppercase[: len(pieces) // 2]:
        return ()
    return tuple(piece.strip(" ,\n") for piece in pieces[2::2])
