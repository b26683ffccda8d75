"""Questions with short answers: VQAv2, TextVQA, DocVQA, ChartQA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dct_vl.evaluation.tasks.files import (
    ImageFolder,
    ReadOptions,
    TaskDataError,
    entries,
    find_file,
    read_json,
    read_rows,
    row_image,
    value,
)
from dct_vl.evaluation.tasks.task import TaskItem, user_turn

#: lmms-eval's words, so that scores compare
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
VAL_FIRST = ("validation", "val", "test")


def read_vqav2(path: Path, options: ReadOptions) -> Iterator[TaskItem]:
    """VQAv2's two files, ``*questions.json`` and ``*annotations.json``, and COCO's images."""
    file = find_file(path, ("*[Qq]uestions*.json",), options.split)
    if file is None:
        yield from read_answer_rows(path, options, ("VQAv2", "vqav2_val"), VAL_FIRST)
        return
    data = read_json(file)
    subset = str(data.get("data_subtype", "val2014")) if isinstance(data, dict) else ""
    notes = find_file(file.parent, ("*[Aa]nnotations*.json",), options.split or subset)
    answers: dict[Any, tuple[str, ...]] = {}
    if notes is not None:
        for note in entries(read_json(notes), "annotations", notes):
            texts = tuple(str(a["answer"]) for a in entries(note, "answers", notes))
            answers[value(note, ("question_id",), notes)] = texts
    folder = ImageFolder(path, options, subset, "images")
    for question in entries(data, "questions", file):
        number = int(value(question, ("image_id",), file))
        key = value(question, ("question_id",), file)
        name = f"{number:012d}.jpg"
        yield TaskItem(
            key=str(key),
            turns=user_turn(value(question, ("question",), file) + SHORT_ANSWER),
            images=folder.find(f"COCO_{subset}_{name}", name),
            references=answers.get(key, ()),
        )


def read_textvqa(path: Path, options: ReadOptions) -> Iterator[TaskItem]:
    """``TextVQA_0.5.1_val.json`` and ``train_images/``, where the images of val lie too."""
    split = options.split or "val"
    file = find_file(path, ("TextVQA*.json", "textvqa*.json"), split)
    if file is None:
        yield from read_answer_rows(
            path, options, ("TextVQA", "textvqa_val"), VAL_FIRST, _ask_textvqa
        )
        return
    folder = ImageFolder(path, options, "train_images", "train_val_images", "test_images", "images")
    for entry in entries(read_json(file), "data", file):
        yield TaskItem(
            key=str(value(entry, ("question_id",), file)),
            turns=user_turn(_ask_textvqa(value(entry, ("question",), file))),
            images=folder.find(f"{value(entry, ('image_id',), file)}.jpg"),
            references=_texts(entry.get("answers") or ()),
        )


def read_docvqa(path: Path, options: ReadOptions) -> Iterator[TaskItem]:
    """``val_v1.0*.json`` and the images that it names (``documents/…png``)."""
    file = find_file(path, (f"{options.split or 'val'}_v*.json",))
    if file is None:
        yield from read_answer_rows(
            path, options, ("DocVQA", "docvqa_val"), VAL_FIRST, max_new_tokens=32
        )
        return
    folder = ImageFolder(path, options, "images", "val", "test", "documents")
    for entry in entries(read_json(file), "data", file):
        name = str(value(entry, ("image",), file))
        yield TaskItem(
            key=str(value(entry, ("questionId", "question_id"), file)),
            turns=user_turn(value(entry, ("question",), file) + SHORT_ANSWER),
            images=folder.find(name, Path(name).name),
            references=_texts(entry.get("answers") or ()),
            max_new_tokens=32,
        )


def read_chartqa(path: Path, options: ReadOptions) -> Iterator[TaskItem]:
    """``test_human.json``, ``test_augmented.json`` and ``png/``; the group is the file's kind."""
    split = options.split or "test"
    if path.suffix == ".json":
        files = [path]
    else:
        found = [find_file(path, (f"{split}_{kind}.json",)) for kind in ("human", "augmented")]
        files = [file for file in found if file is not None]
    if not files:
        yield from read_answer_rows(path, options, ("ChartQA",), ("test", *VAL_FIRST))
        return
    folder = ImageFolder(path, options, "png", f"{split}/png")
    for file in files:
        kind = file.stem.rpartition("_")[2]
        data = read_json(file)
        if not isinstance(data, list):
            raise TaskDataError(f"{file} is no list of questions")
        for number, entry in enumerate(data):
            yield TaskItem(
                key=f"{kind}-{number}",
                turns=user_turn(value(entry, ("query",), file) + SHORT_ANSWER),
                images=folder.find(value(entry, ("imgname",), file)),
                references=(str(value(entry, ("label",), file)),),
                group=kind,
            )


def read_answer_rows(
    path: Path,
    options: ReadOptions,
    names: tuple[str, ...],
    splits: tuple[str, ...],
    prompt: Callable[[str], str] = lambda question: question + SHORT_ANSWER,
    *,
    max_new_tokens: int = 16,
) -> Iterator[TaskItem]:
    """Rows with a question, its answer or answers and an image, as lmms-lab's datasets have them.

    Raises:
        TaskDataError: there is no dataset, or rows of another kind.
    """
    for number, row in read_rows(path, options, names, splits):
        answers = row.get("answers") or row.get("answer") or ()
        group = row.get("type") or row.get("category") or ""
        key = row.get("question_id", row.get("questionId"))
        # ids may repeat: POPE counts from 1 in each category, ChartQA has none
        prefix = f"{group}-" if group else ""
        yield TaskItem(
            key=f"{prefix}{number if key is None else key}",
            turns=user_turn(prompt(value(row, ("question", "query"), path))),
            images=row_image(row),
            references=_texts(answers),
            max_new_tokens=max_new_tokens,
            group=str(group),
        )


def _ask_textvqa(question: str) -> str:
    return question.capitalize() + SHORT_ANSWER


def _texts(answers: Any) -> tuple[str, ...]:
    """Answers as one text, a list of texts, or a list of objects with an "answer"."""
    found = [answers] if isinstance(answers, str | int | float) else list(answers)
    return tuple(str(a["answer"]) if isinstance(a, dict) else str(a) for a in found)
