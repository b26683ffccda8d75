"""The error of a wrong tokenizer name or setting, and the suggestion of known names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TokenizerConfigError(ValueError):
    """A preset, family or key that does not exist, or a value that no tokenizer can have."""


def nearest_first(name: str, known: Iterable[str]) -> str:
    """The known names, the ones most like `name` first, comma-separated."""
    return ", ".join(
        sorted(known, key=lambda k: (-difflib.SequenceMatcher(None, name, k).ratio(), k))
    )
