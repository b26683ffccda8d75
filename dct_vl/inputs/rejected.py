"""Held-out samples that nobody can be asked about: listed with a reason, as training does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import orjson

from data_prep.schema import SchemaError
from dct_vl.inputs.chat import ChatError
from dct_vl.inputs.images import ImageError
from dct_vl.inputs.video import VideoError


class DamagedSample(ValueError):
    """A sample that its shard does not give back: a header is damaged, or the file ends early."""

    def __init__(self, detail: str, file: str) -> None:
        super().__init__(detail)
        #: the shard
        self.file = file


def reason_of(error: Exception) -> str:
    """The word under which training counts a sample with this error."""
    if isinstance(error, DamagedSample):
        return "damaged_shard"
    if isinstance(error, SchemaError):
        return "schema"
    if isinstance(error, ChatError):
        return error.reason
    if isinstance(error, ImageError | VideoError):
        return "undecodable"
    if isinstance(error, OSError):
        return "unreadable"
    return "unplannable"


class RejectedSamples:
    """Collects samples by reason and writes one JSON line each: key, reason, detail, and file
    where a shard is damaged.

    Args:
        path: file to write; an earlier one goes away, and there is none where nothing is rejected.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_reason: Counter[str] = Counter()
        path.unlink(missing_ok=True)

    def add(self, key: str, error: ValueError) -> None:
        """Reject the sample `key` for what was raised about it."""
        reason = reason_of(error)
        self.by_reason[reason] += 1
        entry = {"key": key, "reason": reason, "detail": str(error)}
        if isinstance(error, DamagedSample):
            entry["file"] = error.file
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.write(orjson.dumps(entry) + b"\n")

    def __str__(self) -> str:
        named = ", ".join(f"{reason} {count}" for reason, count in self.by_reason.most_common())
        return f"{self.by_reason.total()} samples rejected ({named}): {self.path}"
