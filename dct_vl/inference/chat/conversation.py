"""A conversation as it grows: its turns, its images and videos, and an answer as it is made."""

from __future__ import annotations

import math
import threading
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from PIL import Image

from data_prep.schema import Turn
from data_prep.video_file import read_header
from dct_tokenizer.decode import decode_rgb
from dct_tokenizer.pixels import resize_frames
from dct_tokenizer.show import View, look, write_html, write_png
from dct_tokenizer.show.figure import psnr_text
from dct_vl.inference.generate.engine import Engine, Reply
from dct_vl.inference.generate.requests import Request
from dct_vl.inputs.chat import IMAGE_MARK, VIDEO_MARK, Kind
from dct_vl.inputs.clips import make_clip
from dct_vl.inputs.video import read_frames

_MARKS: dict[Kind, str] = {"image": IMAGE_MARK, "video": VIDEO_MARK}
#: what a tokenizer writes for the first bytes of a character whose last ones are still to come
_INCOMPLETE = "\ufffd"
#: engines answer one question at a time, whoever asks: they share a device, and Megatron's state
_ONE_AT_A_TIME = threading.Lock()
#: frames of a video that are shown side by side
_MOST_FRAMES = 8
#: pixels between the two rows
_GAP = 12


@dataclass(frozen=True, kw_only=True)
class Medium:
    """An image or a video, read once so that its file may change or go away."""

    kind: Kind
    name: str
    data: bytes


def read_medium(kind: Kind, path: Path) -> Medium:
    """Read a file; raises OSError."""
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
        return [*self.media, *self.pending]

    def request(self, question: str, max_new_tokens: int) -> Request:
        """The whole conversation with one more question.

        Images and videos precede the question in the order in which they came, unless it says
        with `<image>` and `<video>` where they belong.
        """
        text = question
        if not any(_MARKS[one.kind] in question for one in self.pending):
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
        """The answer so far, again and again, and the reply at last, which becomes history."""
        request = self.request(question, max_new_tokens)
        with closing(stream(engine, engine.encode(request))) as pieces:
            for piece in pieces:
                if isinstance(piece, Reply):
                    self.turns = [*request.turns, Turn(role="assistant", text=piece.text)]
                    self.media, self.pending = self.everything, []
                yield piece

    def reset(self) -> None:
        self.turns, self.media, self.pending = [], [], []


class _AbandonedError(Exception):
    """Nobody waits for the answer any more."""


def stream(engine: Engine, encoded: Any) -> Generator[str | Reply, None, None]:
    """The text so far after each token, each the beginning of the next, and the reply at last.

    The engine works in another thread. Where the iterator is closed early, the answer is given up
    at its next token, and the engine is free again once closing returns.

    Args:
        engine: that answers, once no other stream is being answered.
    """
    pieces: SimpleQueue[str | Reply | BaseException] = SimpleQueue()
    abandoned = threading.Event()

    def watch(text: str) -> None:
        if abandoned.is_set():
            raise _AbandonedError
        pieces.put(text)

    def work() -> None:
        try:
            with _ONE_AT_A_TIME:
                pieces.put(engine.answer([encoded], watch)[0])
        except BaseException as error:
            pieces.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while not isinstance(piece := pieces.get(), Reply):
            if isinstance(piece, BaseException):
                raise piece
            yield settled(piece, engine.settings.stop)
        yield piece
    finally:
        abandoned.set()
        thread.join()


def settled(text: str, stop: Sequence[str]) -> str:
    """What of a growing text stays in the answer, whatever follows.

    An answer is stripped and ends before a stop text: space at its end and the beginning of a
    stop text are held back.
    """
    text = text.rstrip(_INCOMPLETE)
    found = [start for mark in stop if (start := text.find(mark)) >= 0]
    end = min(found, default=len(text))
    for mark in () if found else stop:
        begun = (n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n]))
        end = min(end, len(text) - next(begun, 0))
    return text[:end].strip()


def describe(medium: Medium, engine: Engine) -> str:
    """Size and number of visual tokens; a ValueError where it is damaged or cannot be cut."""
    if medium.kind == "image":
        frames = decode_rgb(medium.data)
        height, width = frames.shape[1:3]
        plan = engine.visual.refine(frames, engine.visual.plan(height, width))
        size = f"{width} x {height} pixels"
    else:
        header = read_header(medium.data)
        clip = make_clip(header, engine.video_rules)
        plan = clip.plan(engine.visual)
        size = f"{header.width} x {header.height} pixels, {clip.num_frames} frames taken"
    at_most = "at most " if medium.kind == "video" else ""
    return f"{medium.name}: {size}, {at_most}{plan.num_llm_tokens} visual tokens"


def numbers(view: View) -> str:
    """Tokens and loss of a view in a line."""
    height, width = view.image.shape[:2]
    loss = psnr_text(view.psnr)
    return (
        f"{view.tokenizer.name}: {view.plan.num_llm_tokens} visual tokens, "
        f"{width} x {height} pixels, {loss if math.isinf(view.psnr) else f'PSNR {loss}'}"
    )


def write_seen(medium: Medium, engine: Engine, path: Path) -> str:
    """Draw an image, or frames of a video above what is seen of them; returns what was written.

    Args:
        path: PNG to write; an image's page with a slider has the same name in .html.

    Raises:
        ValueError, OSError: the medium is damaged, or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if medium.kind == "video":
        return _write_strip(medium, engine, path)
    view = look(engine.visual, decode_rgb(medium.data)[0])
    write_png([view], path)
    page = path.with_suffix(".html")
    write_html([view], page, medium.name)
    return f"{numbers(view)}: {path}, {page}"


def _write_strip(medium: Medium, engine: Engine, path: Path) -> str:
    clip = make_clip(read_header(medium.data), engine.video_rules)
    plan = clip.plan(engine.visual)
    taken = read_frames(medium.data, clip.num_frames, plan.height, plan.width).frames
    if len(taken) < clip.num_frames:
        plan = clip.plan(engine.visual, len(taken))
    plan = engine.visual.refine(taken, plan)
    seen = engine.visual.seen(taken, plan)
    # a tokenizer may see less than what it plans: both rows have one size
    rows = (
        resize_frames(taken, plan.height, plan.width),
        resize_frames(seen, plan.height, plan.width),
    )
    shown = np.linspace(0, len(taken) - 1, min(_MOST_FRAMES, len(taken))).round().astype(int)
    strips = [np.concatenate(list(row[shown]), axis=1) for row in rows]
    gap = np.full((_GAP, *strips[0].shape[1:]), 255, np.uint8)
    Image.fromarray(np.concatenate([strips[0], gap, strips[1]])).save(path)
    tokens = f"{engine.visual.name}: {plan.num_llm_tokens} visual tokens"
    return f"{tokens}, {len(taken)} frames, above as they are, below as seen: {path}"
