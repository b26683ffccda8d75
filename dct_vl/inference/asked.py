"""What an engine on this project's model is asked, and what it gives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dct_vl.inputs.samples import EncodedChat


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A prompt, and how long its answer may be."""

    #: its key seeds what is drawn
    prompt: EncodedChat
    #: most tokens of the answer, at least 1
    limit: int

    @property
    def num_places(self) -> int:
        """Places that a slot needs; one more than is kept, for the step that finds the end."""
        return len(self.prompt.input_ids) + self.limit + 1


class Queue:
    """What waits to be answered, numbered from 0 on; the first one can be looked at."""

    def __init__(self, asked: Iterable[Asked]) -> None:
        self._asked = enumerate(asked)
        self._first: tuple[int, Asked] | None = None

    def first(self) -> tuple[int, Asked] | None:
        """(number, what is asked); None once there is nothing left."""
        if self._first is None:
            self._first = next(self._asked, None)
        return self._first

    def pop(self) -> None:
        self._first = None


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What followed a prompt."""

    #: without the end mark
    tokens: tuple[int, ...]
    #: False where the answer was cut off at its limit
    is_finished: bool
