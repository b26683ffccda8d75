"""A conversation as it grows: its turns, and the pictures and videos that they show."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.schema import Turn
from dct_vl.inference.chat.stream import stream
from dct_vl.inference.generate.engine import Engine, Reply
from dct_vl.inference.generate.requests import Request
from dct_vl.inputs.chat import IMAGE_MARK, VIDEO_MARK, Kind

_MARKS: dict[Kind, str] = {"image": IMAGE_MARK, "video": VIDEO_MARK}
_MARK = re.compile("<(image|video)>")


@dataclass(frozen=True, kw_only=True)
class Medium:
    """A picture or a video, read once so that its file may change or go away."""

    kind: Kind
    name: str
    data: bytes


def read_medium(kind: Kind, path: Path) -> Medium:
    """Read a file.

    Raises:
        OSError: it cannot be read.
    """
    return Medium(kind=kind, name=path.name, data=path.read_bytes())


@dataclass(kw_only=True)
class Conversation:
    """What was said so far; a question that fails leaves it as it was."""

    turns: list[Turn] = field(default_factory=list)
    #: of the turns, in their order
    media: list[Medium] = field(default_factory=list)
    #: that the next question shows
    pending: list[Medium] = field(default_factory=list)

    @property
    def everything(self) -> list[Medium]:
        """All pictures and videos, those of the next question last."""
        return [*self.media, *self.pending]

    def request(self, question: str, max_new_tokens: int) -> Request:
        """The whole conversation with one more question.

        Pictures and videos precede the question in the order in which they came, unless it says
        with `<image>` and `<video>` where they belong.
        """
        text = question
        if not _MARK.search(question):
            text = "\n".join([*(_MARKS[one.kind] for one in self.pending), question])
        return Request(
            # seeds what is drawn: each turn from a stream of its own, again the same after a reset
            key=f"turn {len(self.turns) // 2 + 1}",
            turns=(*self.turns, Turn(role="user", text=text)),
            images=tuple(one.data for one in self.everything if one.kind == "image"),
            videos=tuple(one.data for one in self.everything if one.kind == "video"),
            max_new_tokens=max_new_tokens,
        )

    def ask(
        self, engine: Engine, question: str, max_new_tokens: int
    ) -> Generator[str | Reply, None, None]:
        """The answer so far, again and again, and the reply at last, which becomes history.

        Raises:
            ValueError, OSError: the question cannot be asked.
        """
        request = self.request(question, max_new_tokens)
        with closing(stream(engine, engine.encode(request))) as pieces:
            for piece in pieces:
                if isinstance(piece, Reply):
                    # a mark in what the model said would ask for a picture in the next turn
                    said = _MARK.sub(r"< \1>", piece.text)
                    self.turns = [*request.turns, Turn(role="assistant", text=said)]
                    self.media, self.pending = self.everything, []
                yield piece

    def reset(self) -> None:
        """Forget everything."""
        self.turns, self.media, self.pending = [], [], []
