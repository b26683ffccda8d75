"""The items of a benchmark as requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dct_vl.evaluation.tasks.item import TaskItem
from dct_vl.evaluation.tasks.task import ReadOptions, Task, items_of
from dct_vl.inference.generate.requests import Request, Requests, digest_of


class TaskRequests(Requests):
    """Items of a benchmark; pictures are read as the items come by, never all at once.

    Args:
        task: the benchmark.
        path: its data.
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
