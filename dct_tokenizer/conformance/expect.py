"""How a clause says that it is broken."""

from __future__ import annotations


class ClauseError(AssertionError):
    """A clause of the contract that a tokenizer breaks; the message holds both values."""


def expect(ok: bool, message: str) -> None:
    """Raises ClauseError with the message unless `ok`."""
    if not ok:
        raise ClauseError(message)
