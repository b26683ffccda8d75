"""Order of sources such as `numbers_6px`."""

from __future__ import annotations


def by_kind(source: str) -> tuple[str, int]:
    """Key that sorts by kind, then by the number in the name."""
    digits = "".join(c for c in source if c.isdigit())
    return source.replace(digits, ""), int(digits or 0)
