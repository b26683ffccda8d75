"""A task: the items of a benchmark, a reader of them and a scorer under a name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.schema import Turn
from dct_vl.evaluation.tasks.files import ReadOptions, TaskDataError
from dct_vl.inference.generate.requests import Request, Requests, digest_of
from dct_vl.inputs.chat import IMAGE_MARK


@dataclass(frozen=True, kw_only=True)
class TaskItem:
    """What to ask, and what the metric needs to know of the answer."""

    #: unique within its task; predictions name it
    key: str
    #: ends with a user's turn; ``<image>`` marks the place of each of `images`
    turns: tuple[Turn, ...]
    #: encoded bytes or the files they lie in; () where the reader was asked for text only
    images: tuple[bytes | Path, ...]
    #: true answers; () where the benchmark keeps them back
    references: tuple[str, ...]
    max_new_tokens: int = 16
    #: texts of the options of a multiple-choice question, in the order of their letters
    options: tuple[str, ...] = ()
    #: part of the benchmark that it is also scored by: a category, a split, a pair
    group: str = ""

    @property
    def question(self) -> str:
        """The last turn's text without the marks of its images."""
        return self.turns[-1].text.replace(IMAGE_MARK, "").strip()

    def image_bytes(self) -> tuple[bytes, ...]:
        """Encoded images, read where they are files; raises OSError."""
        return tuple(i if isinstance(i, bytes) else i.read_bytes() for i in self.images)


def user_turn(text: str, num_images: int = 1) -> tuple[Turn, ...]:
    """A conversation of one user's turn, its images first, as Qwen2-VL's template places them."""
    return (Turn(role="user", text=f"{IMAGE_MARK}\n" * num_images + text),)


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


class TaskRequests(Requests):
    """Items of a benchmark; images are read as the items come by, never all at once.

    Args:
        task, path: the benchmark and its data.
        split: part of it; None for the usual one.
        max_new_tokens: instead of the items' own.
        limit: only the first so many.
    """

    def __init__(
        self,
        task: Task,
        path: Path,
        *,
        split: str | None = None,
        max_new_tokens: int | None = None,
        limit: int | None = None,
    ) -> None:
        self._task, self._path, self._split = task, path, split
        self._max_new_tokens = max_new_tokens
        items = items_of(task, path, ReadOptions(split=split, images=False))[:limit]
        self.keys = [item.key for item in items]
        self.rejected = []
        self.digest = digest_of(map(self._of, items))

    def __iter__(self) -> Iterator[Request]:
        items = self._task.read(self._path, ReadOptions(split=self._split))
        for _, item in zip(self.keys, items, strict=False):
            yield self._of(item)

    def _of(self, item: TaskItem) -> Request:
        return Request(
            key=item.key,
            turns=item.turns,
            images=item.images,
            videos=(),
            max_new_tokens=self._max_new_tokens or item.max_new_tokens,
        )
