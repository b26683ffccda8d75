"""Samples and questions that cannot be asked about: listed with a reason, as training does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import orjson

from dct_vl.inputs.cook import DamagedSample, reason_of


def reject_line(key: str, error: Exception) -> dict[str, str]:
    """key, reason, detail, and file where a shard is damaged."""
    line = {"key": key, "reason": reason_of(error), "detail": str(error)}
    return {**line, "file": error.file} if isinstance(error, DamagedSample) else line


class RejectedSamples:
    """Counts samples by reason and writes one JSON line each.

    Args:
        path: file to write; an earlier one goes away, and there is none where nothing is rejected.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_reason: Counter[str] = Counter()
        path.unlink(missing_ok=True)

    def add(self, key: str, error: ValueError) -> None:
        """Reject the sample `key` for what was raised about it."""
        self.add_line(reject_line(key, error))

    def add_line(self, line: dict[str, str]) -> None:
        """As `add`, for what `reject_line` made."""
        self.by_reason[line["reason"]] += 1
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.write(orjson.dumps(line) + b"\n")

    def __str__(self) -> str:
        named = ", ".join(f"{reason} {count}" for reason, count in self.by_reason.most_common())
        return f"{self.by_reason.total()} samples rejected ({named}): {self.path}"
