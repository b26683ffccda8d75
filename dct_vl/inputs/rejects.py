"""Samples that are left out, or taken in part: counted, listed with a reason, never silently.

In training each loader process appends to a file of its own, and the trainer reads the counts;
what answers lists samples and questions in one file.
"""

from __future__ import annotations

import os
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import orjson
from megatron.energon import SkipSample
from megatron.energon.errors import FatalSampleError
from megatron.energon.source_info import SourceInfo

from dct_vl.inputs.jsonl import is_jsonl
from dct_vl.inputs.samples import CrudeChat, DamagedSample, PlannedChat, Stage, reason_of

#: by reason, what a user can do about it
_NEXT = {
    "too_long": "raise data.seq_length, or lower data.max_pixels",
    "too_many_patches": "raise data.max_patches_per_pack, or lower data.max_pixels",
    "undecodable": "replace the file in the source data and prepare its shard again",
    "damaged_shard": "copy the shard again, or prepare it again",
    "schema": "correct the entry (data_prep/schema.py says what is expected) and prepare it again",
    "error": "if the sample is sound, this is a defect of the program: report it with the sample",
}
_NEXT_OTHERWISE = "correct the entry in the source data and prepare its shard again"
#: of what was read from a JSONL file, of which nothing is prepared
_NEXT_OF_LINES = {
    **_NEXT,
    "undecodable": "replace the file that the line names, or remove the line",
    "schema": "correct the line that is named, or remove it",
}
_NEXT_OF_LINES_OTHERWISE = "correct the line of this entry (its key counts from 0), or remove it"


def _next_step(reason: str, file: str) -> str:
    if is_jsonl(file):
        return _NEXT_OF_LINES.get(reason, _NEXT_OF_LINES_OTHERWISE)
    return _NEXT.get(reason, _NEXT_OTHERWISE)


class RejectLog:
    """Appends rejections to `folder`/*.jsonl and stops the run when they do not end.

    A line holds `file` (the shard), `key`, `reason`, `detail` and `next` (what to do about it); of
    a sample that is used in part, `note` in place of `reason` and `next`.

    Args:
        folder: where the files go; None keeps no files (the samples are still skipped).
        data_path: named in the message that stops the run.
        max_in_a_row: consecutive rejections of one loader process that stop the run, those of
            each stage on their own: many samples are planned before the first one is decoded.
    """

    def __init__(self, folder: str | Path | None, data_path: str, max_in_a_row: int = 100) -> None:
        self.folder = Path(folder) if folder is not None else None
        self.data_path = data_path
        self.max_in_a_row = max_in_a_row
        self._in_a_row: Counter[Stage] = Counter()

    def accept(self, stage: Stage) -> None:
        """A sample came through a stage: the run of its rejections, if any, is over."""
        self._in_a_row[stage] = 0
        if stage == "planning":
            self._in_a_row["cooking"] = 0

    def reject(
        self, key: str, reason: str, detail: str, *, stage: Stage = "planning", file: str = ""
    ) -> NoReturn:
        """Record one sample and skip it.

        Args:
            reason: short, for the counts.
            detail: values, what was expected.
            file: that holds the sample, "" where it is unknown.

        Raises:
            SkipSample: always, unless
            FatalSampleError: `max_in_a_row` samples in a row were rejected at this stage.
        """
        self._append_reject(key, reason, detail, file)
        self._count(key, reason, detail, stage=stage, file=file)
        raise SkipSample(f"{key}: {reason}")

    def _count(self, key: str, reason: str, detail: str, *, stage: Stage, file: str) -> None:
        """Stop where rejections of a stage do not end."""
        self._in_a_row[stage] += 1
        if self._in_a_row[stage] < self.max_in_a_row:
            return
        where = f"{key} of {file}" if file else key
        said = " ".join(detail.split())
        # without the exception that led here, whose stack would come first
        raise FatalSampleError(
            f"{self._in_a_row[stage]} samples in a row of {self.data_path} were rejected at "
            f"{stage}, the last one {where}: {reason} ({said}). The dataset does not suit this "
            f"run: {_next_step(reason, file)}; all of them are in {self.folder}/*.jsonl, "
            f"and data.max_rejects_in_a_row={self.max_in_a_row} is what was reached"
        ) from None

    def note(self, key: str, note: str, detail: str, *, file: str = "") -> None:
        """Record a sample of which only a part is used."""
        self._append({"file": file, "key": key, "note": note, "detail": detail})

    def record_error(
        self, error: Exception, sample: Any, sources: Sequence[SourceInfo] | None = None
    ) -> None:
        """Record what nobody foresaw, for Energon, which then skips the sample (or the batch).

        Args:
            sample: a sample or pack, or the list of those that were to become a pack or batch.
            sources: Energon's; the samples know them too.

        Raises:
            FatalSampleError: as of `reject`.
        """
        place = traceback.extract_tb(error.__traceback__)[-1:]
        where = "".join(f" ({frame.filename}:{frame.lineno})" for frame in place)
        detail = f"{type(error).__name__}: {error}{where}"
        found = sample if isinstance(sample, list) else [sample]
        last = ("", "")
        for each in found:
            for one in getattr(each, "samples", None) or (each,):
                last = (_key_of(one), file_of(one))
                self._append_reject(last[0], "error", detail, last[1])
        key, file = last
        self._count(key, "error", detail, stage=_stage_of(sample), file=file)

    def _append_reject(self, key: str, reason: str, detail: str, file: str) -> None:
        step = _next_step(reason, file)
        self._append({"file": file, "key": key, "reason": reason, "detail": detail, "next": step})

    def _append(self, entry: dict[str, str]) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"{os.uname().nodename}-{os.getpid()}.jsonl", "ab") as file:
            # half of a surrogate pair, which a key or an error may hold, is no text for JSON
            sound = {k: v.encode("utf-8", "backslashreplace").decode() for k, v in entry.items()}
            file.write(orjson.dumps(sound) + b"\n")


def file_of(sample: Any) -> str:
    """The shard or file that Energon read a sample from; "" where it does not say."""
    held = _field(sample, "__sources__")
    if not held:
        return ""
    folder, name = str(held[0].dataset_path), held[0].shard_name
    return folder if folder.endswith(f"/{name}") else f"{folder}/{name}"


def _key_of(sample: Any) -> str:
    return str(_field(sample, "__key__"))


def _field(sample: Any, name: str) -> Any:
    """Of whatever may be on its way through Energon; raw samples hold the dicts of their parts."""
    parts = getattr(sample, "data", None)
    if isinstance(parts, tuple) and parts:
        sample = parts[0]
    return sample.get(name) if isinstance(sample, dict) else getattr(sample, name, None)


def _stage_of(sample: Any) -> Stage:
    """Where something failed, from what was to become of it."""
    if isinstance(sample, list):
        return "batching"
    if isinstance(sample, PlannedChat):
        return "decoding"
    return "planning" if isinstance(sample, CrudeChat) else "cooking"


class RejectReader:
    """Distinct samples of a folder that a `RejectLog` writes, over all loader processes and
    restarts. Each look reads only what has been written since the one before.

    Args:
        folder: need not be there.
        field: "reason" for rejected samples, "note" for those that are used in part.
    """

    def __init__(self, folder: str | Path, field: Literal["reason", "note"]) -> None:
        self.folder = Path(folder)
        self.field = field
        #: bytes of each file that have been read, whole lines
        self._places: dict[Path, int] = {}
        self._seen: set[tuple[str, str]] = set()

    def read(self) -> set[tuple[str, str]]:
        """(reason or note, key) of every sample; not to be changed."""
        for path in sorted(self.folder.glob("*.jsonl")):
            with open(path, "rb") as file:
                file.seek(self._places.get(path, 0))
                written, newline, _ = file.read().rpartition(b"\n")
            self._places[path] = self._places.get(path, 0) + len(written) + len(newline)
            for line in written.splitlines():
                try:
                    entry = orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue  # a killed process broke it off, and one of the same id went on
                if self.field in entry:
                    self._seen.add((entry[self.field], entry["key"]))
        return self._seen


def count_rejects(folder: str | Path) -> Counter[str]:
    """Distinct rejected samples by reason, over all loader processes and restarts."""
    return Counter(reason for reason, _ in RejectReader(folder, "reason").read())


def count_notes(folder: str | Path) -> Counter[str]:
    """Distinct samples that were used in part, by note, over all loader processes and restarts."""
    return Counter(note for note, _ in RejectReader(folder, "note").read())


def read_rejects(folder: str | Path) -> set[str]:
    """Keys of the rejected samples, over all loader processes and restarts."""
    return {key for _, key in RejectReader(folder, "reason").read()}


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
