"""One question of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from data_prep.schema import Turn
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
    max_new_tokens: int
    #: texts of the options of a multiple-choice question, in the order of their letters
    options: tuple[str, ...] = field(default=())
    #: part of the benchmark that it is also scored by: a category, a split, a pair
    group: str = ""

    @property
    def question(self) -> str:
        """The last turn's text without the marks of its images."""
        return self.turns[-1].text.replace(IMAGE_MARK, "").strip()

    def image_bytes(self) -> tuple[bytes, ...]:
        """Encoded images, read where they are files.

        Raises:
            OSError: a file cannot be read.
        """
        return tuple(i if isinstance(i, bytes) else i.read_bytes() for i in self.images)


def user_turn(text: str, num_images: int = 1) -> tuple[Turn, ...]:
    """A conversation of one user's turn, its images first, as Qwen2-VL's template places them."""
    return (Turn(role="user", text=f"{IMAGE_MARK}\n" * num_images + text),)
