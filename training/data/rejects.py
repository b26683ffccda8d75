"""Samples that training leaves out, or takes in part: counted, listed, and never silently.

Each loader process appends to a file of its own; the trainer reads the counts.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import NoReturn

import orjson
from megatron.energon import SkipSample
from megatron.energon.errors import FatalSampleError


class RejectLog:
    """Appends rejections to `folder`/*.jsonl and stops the run when they do not end.

    Args:
        folder: where the files go; None keeps no files (the samples are still skipped).
        data_path: named in the message that stops the run.
        max_in_a_row: consecutive rejections of one loader process that stop the run.
    """

    def __init__(self, folder: str | Path | None, data_path: str, max_in_a_row: int = 100) -> None:
        self.folder = Path(folder) if folder is not None else None
        self.data_path = data_path
        self.max_in_a_row = max_in_a_row
        self._in_a_row = 0

    def accept(self) -> None:
        """A sample came through: the run of rejections, if any, is over."""
        self._in_a_row = 0

    def reject(self, key: str, reason: str, detail: str) -> NoReturn:
        """Record one sample and skip it.

        Raises:
            SkipSample: always, unless
            FatalSampleError: `max_in_a_row` samples in a row were rejected.
        """
        self._append({"key": key, "reason": reason, "detail": detail})
        self._in_a_row += 1
        if self._in_a_row >= self.max_in_a_row:
            raise FatalSampleError(
                f"{self._in_a_row} samples in a row of {self.data_path} were rejected, the last "
                f"one {key}: {reason} ({detail}). The dataset does not suit this run: see "
                f"{self.folder}/*.jsonl; data.seq_length and the pixel bounds are the usual causes"
            )
        raise SkipSample(f"{key}: {reason}")

    def note(self, key: str, note: str, detail: str) -> None:
        """Record a sample of which only a part is used."""
        self._append({"key": key, "note": note, "detail": detail})

    def _append(self, entry: dict[str, str]) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"{os.uname().nodename}-{os.getpid()}.jsonl", "ab") as file:
            file.write(orjson.dumps(entry) + b"\n")


def count_rejects(folder: str | Path) -> Counter[str]:
    """Distinct rejected samples by reason, over all loader processes and restarts."""
    return _count(folder, "reason")


def count_notes(folder: str | Path) -> Counter[str]:
    """Distinct samples that were used in part, by note, over all loader processes and restarts."""
    return _count(folder, "note")


def read_rejects(folder: str | Path) -> set[str]:
    """Keys of the rejected samples, over all loader processes and restarts."""
    return {key for _, key in _read(folder, "reason")}


def _count(folder: str | Path, field: str) -> Counter[str]:
    return Counter(value for value, _ in _read(folder, field))


def _read(folder: str | Path, field: str) -> set[tuple[str, str]]:
    seen: set[tuple[str, str]] = set()
    for path in sorted(Path(folder).glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                entry = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # the last line of a killed process
            if field in entry:
                seen.add((entry[field], entry["key"]))
    return seen
