"""A task: a reader and a scorer under a name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dct_vl.evaluation.tasks.files import TaskDataError
from dct_vl.evaluation.tasks.item import TaskItem


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What of a benchmark's data is read."""

    #: part of the data, in the benchmark's own words; None takes the one that the task is about
    split: str | None = None
    #: False leaves the pictures out, which scoring does not need
    images: bool = True


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """What a scorer says."""

    #: by name, over all items
    total: dict[str, float]
    #: by name, for each item in the order given; the names may be fewer than those of `total`
    each: list[dict[str, float]]


#: what damaged files make readers, parsers and the datasets library raise
_DAMAGE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OSError)

Reader = Callable[[Path, ReadOptions], Iterator[TaskItem]]
#: (items, their answers; "" where the model gave none) → scores
Scorer = Callable[[Sequence[TaskItem], Sequence[str]], TaskScores]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark as this project runs it."""

    name: str
    summary: str
    #: what its data folder holds
    layout: str
    read: Reader
    score: Scorer
    #: the score that stands for the task
    headline: str
    higher_is_better: bool = True


def items_of(task: Task, path: Path, options: ReadOptions) -> list[TaskItem]:
    """All items of a task.

    Raises:
        ValueError: the data is not there or not the task's, has no item, or two of one key.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist; {task.name} reads {task.layout}")
    items: list[TaskItem] = []
    try:
        items.extend(task.read(path, options))
    except TaskDataError:
        raise
    except _DAMAGE as error:
        raise TaskDataError(
            f"{path}: item {len(items) + 1} of {task.name} cannot be read "
            f"({type(error).__name__}: {error}); expected {task.layout}: mend or remove that entry"
        ) from error
    if not items:
        raise ValueError(f"{path} has no item of {task.name}, which reads {task.layout}")
    seen: set[str] = set()
    for item in items:
        if item.key in seen:
            raise ValueError(f"{path} has two items of {task.name} with the key {item.key}")
        seen.add(item.key)
    return items
