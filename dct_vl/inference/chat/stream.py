"""An answer while it is made."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from queue import SimpleQueue
from typing import Any

from dct_vl.inference.generate.engine import Engine, Reply

#: what a tokenizer writes for the first bytes of a character whose last ones are still to come
_INCOMPLETE = "\ufffd"
#: engines answer one question at a time, whoever asks: they share a device, and Megatron's state
_ONE_AT_A_TIME = threading.Lock()


class _AbandonedError(Exception):
    """Nobody waits for the answer any more."""


def stream(engine: Engine, encoded: Any) -> Generator[str | Reply, None, None]:
    """The text so far after each token, each the beginning of the next, and the reply at last.

    The engine works in another thread. Where the iterator is closed early, the answer is given up
    at its next token, and the engine is free again once closing returns.

    Args:
        engine: that answers, once no other stream is being answered.
        encoded: what `engine.encode` gave.
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
    found = [place for mark in stop if (place := text.find(mark)) >= 0]
    end = min(found, default=len(text))
    for mark in () if found else stop:
        begun = (n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n]))
        end = min(end, len(text) - next(begun, 0))
    return text[:end].strip()
