"""Conversations in JSON lines: prices (SMAPE) and questions of one's own (exact match)."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.schema import Turn
from dct_vl.evaluation.metrics.answers import parse_price
from dct_vl.evaluation.tasks.files import ReadOptions, TaskDataError, find_file, read_jsonl, value
from dct_vl.evaluation.tasks.task import TaskItem, user_turn
from dct_vl.inputs.chat import IMAGE_MARK


def read_prices(path: Path, options: ReadOptions) -> Iterator[TaskItem]:
    """Chat JSON lines: ``{"sample_id", "messages": [{"role", "content"}, …]}``.

    A user's content is a list of ``{"type": "image", "image": PATH}`` and ``{"type": "text",
    "text": …}``; the assistant's is the price as text, and lacks in a test file. Relative paths
    start at the file's folder.
    """
    file = find_file(path, ("*.jsonl",), options.split)
    if file is None:
        raise TaskDataError(f"{path} has no .jsonl file of conversations")
    for number, entry in read_jsonl(file):
        where = f"{file}, line {number}"
        turns: list[Turn] = []
        images: list[Path] = []
        price: tuple[str, ...] = ()
        for message in value(entry, ("messages",), where):
            if not isinstance(message, dict):
                raise TaskDataError(f"{where}: the message {message!r} is no object")
            role, content = message.get("role"), message.get("content")
            if role == "assistant":
                price = (_text(content, images, where),)
            elif role in ("system", "user"):
                turns.append(Turn(role=role, text=_text(content, images, where)))
            else:
                raise TaskDataError(f"{where}: a message has the role {role!r}")
        if not turns or turns[-1].role != "user":
            raise TaskDataError(f"{where}: the conversation has no user's message")
        yield TaskItem(
            key=str(value(entry, ("sample_id", "id"), where)),
            turns=tuple(turns),
            images=tuple(file.parent / image for image in images) if options.images else (),
            references=price,
        )


def read_own_questions(path: Path, options: ReadOptions) -> Iterator[TaskItem]:
    """JSON lines ``{"key", "question", "answers": […], "images": [PATH, …]}``.

    ``answers`` may be one ``answer``, ``images`` one ``image`` or missing; a question may place
    its images itself with ``<image>``. Relative paths start at the file's folder.
    """
    file = find_file(path, ("*.jsonl",), options.split)
    if file is None:
        raise TaskDataError(f"{path} has no .jsonl file of questions")
    for number, entry in read_jsonl(file):
        where = f"{file}, line {number}"
        images = _list(_first(entry, "images", "image"))
        question = str(value(entry, ("question",), where))
        marks = question.count(IMAGE_MARK)
        if marks not in (0, len(images)):
            raise TaskDataError(f"{where}: {marks} {IMAGE_MARK} marks for {len(images)} images")
        yield TaskItem(
            key=str(value(entry, ("key", "id"), where)),
            turns=user_turn(question, 0 if marks else len(images)),
            images=tuple(file.parent / image for image in images) if options.images else (),
            references=tuple(_list(_first(entry, "answers", "answer"))),
            max_new_tokens=_limit(entry.get("max_new_tokens"), where),
        )


def _text(content: Any, images: list[Path], where: str) -> str:
    """A message's text; its images are added to `images` and marked in the text."""
    if isinstance(content, str):
        return content
    pieces = []
    for part in content if isinstance(content, list) else []:
        if not isinstance(part, dict):
            raise TaskDataError(f"{where}: the part {part!r} of a content is no object")
        if part.get("type") == "image":
            images.append(Path(value(part, ("image",), where)))
            pieces.append(IMAGE_MARK)
        elif part.get("type") == "text":
            pieces.append(str(value(part, ("text",), where)))
        else:
            raise TaskDataError(f"{where}: a part of the type {part.get('type')!r}")
    return "\n".join(pieces)


def _first(entry: dict[str, Any], *names: str) -> Any:
    return next((entry[name] for name in names if entry.get(name) is not None), None)


def _limit(found: Any, where: str) -> int:
    if found is None:
        return 32
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise TaskDataError(
            f"{where}: max_new_tokens is {found!r}; expected a whole number of at least 1"
        )
    return found


def _list(found: Any) -> list[str]:
    """A list as it is, one thing as a list of it, and null as nothing."""
    if found is None:
        return []
    return [str(one) for one in found] if isinstance(found, list) else [str(found)]


def write_price_file(
    items: Sequence[TaskItem], answers: Mapping[str, str], train: Sequence[TaskItem], output: Path
) -> int:
    """Write ``sample_id,price``, a row for every product; return how many prices were filled in.

    A product without an answer (by key), or whose answer has no number, gets the median of the
    training prices.

    Raises:
        ValueError: no price in `train`.
    """
    known = [parse_price(reference) for item in train for reference in item.references]
    prices = [price for price in known if price is not None]
    if not prices:
        raise ValueError("the training file has no price to fill missing ones with")
    median = statistics.median(prices)
    said = [parse_price(answers.get(item.key, "")) for item in items]
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sample_id", "price"])
        for item, price in zip(items, said, strict=True):
            writer.writerow([item.key, median if price is None else price])
    return sum(price is None for price in said)
