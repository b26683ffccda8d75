"""The plan: which entries go into which shard, from the JSON and the tar index alone.

Entries are checked and their images located in the order of the source; no image is read. Accepted
entries go to a file of lines, and shards are ranges of that file's (perhaps shuffled) order.
Everything later depends on the plan only, so shards can be made in any order by any number of
workers. Memory: 24 bytes per entry, and one entry at a time.
"""

import hashlib
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from data_prep.conversation import check_conversation
from data_prep.durable import sync_folder, write_durably
from data_prep.locate import Location, Locator
from data_prep.options import DEFAULT_SHARD_SIZE, MIN_SHARDS, Options
from data_prep.quarantine import Reason, Rejected, quarantined_indices, reject_line
from data_prep.sources import iter_entries
from data_prep.workspace import Round, read_json, unreadable


@dataclass(frozen=True, kw_only=True)
class PlannedEntry:
    """An entry that was accepted so far."""

    index: int  #: position in the source JSON, from 0
    paths: tuple[str, ...]  #: image paths as the entry gives them
    images: tuple[Location, ...]  #: where they lie
    raw: bytes  #: the entry as JSON, its conversation checked and repaired

    @property
    def entry(self) -> dict[str, Any]:
        return orjson.loads(self.raw)


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """A range of the plan's order."""

    number: int
    first: int  #: position in the order
    count: int  #: entries; samples may be fewer, where images turn out to be broken


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """What ``plan.json`` holds."""

    json_name: str
    inputs: dict[str, list[int]]  #: size and mtime in ns of every input file
    entries: int  #: in this round: all of the JSON's, or those that are retried
    rejected: dict[str, int]  #: by reason, before any image was read
    repairs: dict[str, int]  #: by name
    source_bytes: int  #: of all located images
    shard_size: int
    shards: tuple[PlannedShard, ...]


def load_plan(path: Path) -> RoundPlan:
    """Read a plan back; WorkspaceError where it is not as it was written."""
    fields = read_json(path)
    try:
        shards = tuple(PlannedShard(**shard) for shard in fields.pop("shards"))
        return RoundPlan(**fields, shards=shards)
    except (AttributeError, KeyError, TypeError) as error:
        raise unreadable(path, error) from error


def check_round(source: Round) -> None:
    """Raise WorkspaceError where the files of a round are not as they were written."""
    plan = load_plan(source.plan)
    for path in (source.order, source.entries, source.rejects):
        if not path.is_file():
            raise unreadable(path, "it is not there")
    offsets = np.fromfile(source.order, dtype=np.int64)
    if len(offsets) != sum(shard.count for shard in plan.shards):
        raise unreadable(source.order, f"{len(offsets)} entries")
    with source.entries.open("rb") as entries:
        entries.seek(int(offsets.max(initial=0)))
        last = entries.readline()
        if bool(len(offsets)) != last.endswith(b"\n") or entries.read(1):
            raise unreadable(source.entries, "its end is not where it was")
    if len(quarantined_indices(source.rejects)) != sum(plan.rejected.values()):
        raise unreadable(source.rejects, "lines are missing")


def read_planned(source: Round, shard: PlannedShard) -> Iterator[PlannedEntry]:
    """Entries of a shard, in order."""
    offsets = np.fromfile(source.order, dtype=np.int64, count=shard.count, offset=8 * shard.first)
    with source.entries.open("rb") as file:
        for offset in offsets.tolist():
            file.seek(offset)
            yield from_line(file.readline())


def to_line(entry: PlannedEntry) -> bytes:
    """One line: what the plan adds, a tab, the entry's JSON (which holds no raw tab)."""
    images = [[i.source, i.file, i.offset, i.size] for i in entry.images]
    return b"%s\t%s\n" % (orjson.dumps([entry.index, entry.paths, images]), entry.raw)


def from_line(line: bytes) -> PlannedEntry:
    """Inverse of `to_line`."""
    added, _, raw = line.rstrip(b"\n").partition(b"\t")
    index, paths, images = orjson.loads(added)
    return PlannedEntry(
        index=index,
        paths=tuple(paths),
        images=tuple(
            Location(source=source, file=file, offset=offset, size=size)
            for source, file, offset, size in images
        ),
        raw=raw,
    )


def make_plan(
    target: Round,
    json_path: Path,
    locator: Locator,
    options: Options,
    *,
    inputs: dict[str, list[int]],
    only: Container[int] | None = None,
    first_shard: int = 0,
    on_entry: Callable[[], None] = lambda: None,
) -> RoundPlan:
    """Plan a round; ``only`` limits it to the entries of these indices.

    ``on_entry`` is called for each entry. The plan is written atomically, last.
    """
    shutil.rmtree(target.folder, ignore_errors=True)
    target.record(0).parent.mkdir(parents=True)
    offsets, sizes, indices = array("q"), array("q"), array("q")
    rejected: Counter[str] = Counter()
    repairs: Counter[str] = Counter()
    with target.entries.open("wb") as accepted, target.rejects.open("wb") as rejects:
        for index, raw in enumerate(iter_entries(json_path)):
            if only is not None and index not in only:
                continue
            on_entry()
            try:
                planned, repaired = _check_entry(index, raw, locator, options)
            except Rejected as rejection:
                rejected[rejection.reason.value] += 1
                rejects.write(reject_line(index, raw, rejection))
                continue
            repairs.update(repaired)
            offsets.append(accepted.tell())
            sizes.append(sum(location.size for location in planned.images))
            indices.append(index)
            accepted.write(to_line(planned))
        for file in (accepted, rejects):
            file.flush()
            os.fsync(file.fileno())
    order = _order(indices, options.shuffle_seed)
    write_durably(target.order, np.asarray(offsets, dtype=np.int64)[order].tobytes())
    shard_size, counts = shard_counts(np.asarray(sizes, dtype=np.int64)[order], options)
    starts = np.cumsum([0, *counts]).tolist()
    plan = RoundPlan(
        json_name=json_path.name,
        inputs=inputs,
        entries=len(offsets) + rejected.total(),
        rejected=dict(sorted(rejected.items())),
        repairs=dict(sorted(repairs.items())),
        source_bytes=sum(sizes),
        shard_size=shard_size,
        shards=tuple(
            PlannedShard(number=first_shard + i, first=first, count=count)
            for i, (first, count) in enumerate(zip(starts, counts, strict=False))
        ),
    )
    sync_folder(target.folder.parent)
    write_durably(target.plan, orjson.dumps(plan))
    return plan


def shard_counts(sizes: np.ndarray, options: Options) -> tuple[int, list[int]]:
    """Shard size in use, and the number of entries of every shard.

    ``sizes``: bytes of each entry's source images, int64, in order. Without ``--shard-size`` a set
    too small for `MIN_SHARDS` shards of the default size is divided evenly over that many.
    """
    total = len(sizes)
    if options.shard_size is None and 0 < total <= DEFAULT_SHARD_SIZE * (MIN_SHARDS - 1):
        num_shards = min(MIN_SHARDS, total)
        ends = [total * (i + 1) // num_shards for i in range(num_shards)]
        shard_size = max(np.diff([0, *ends]).tolist())
    else:
        shard_size = options.shard_size or DEFAULT_SHARD_SIZE
        ends = [min(end + shard_size, total) for end in range(0, total, shard_size)]
    if options.shard_bytes is not None:
        ends = _split_by_bytes(sizes, ends, options.shard_bytes)
    return shard_size, np.diff([0, *ends]).tolist()


def _split_by_bytes(sizes: np.ndarray, ends: list[int], limit: int) -> list[int]:
    """Cut ranges further where their bytes exceed the limit; one entry may exceed it alone."""
    cumulative = np.cumsum(sizes)
    cut: list[int] = []
    start = 0
    for end in ends:
        while start < end:
            before = int(cumulative[start - 1]) if start else 0
            fitting = int(np.searchsorted(cumulative, before + limit, side="right"))
            start = min(end, max(fitting, start + 1))
            cut.append(start)
    return cut


def _order(indices: array, seed: int | None) -> np.ndarray:
    """Positions in shard order, by a keyed hash per entry: the same on any machine and version."""
    if seed is None:
        return np.arange(len(indices))
    key = seed.to_bytes(16, "little", signed=True)
    hashes = b"".join(
        hashlib.blake2b(index.to_bytes(8, "little"), digest_size=8, key=key).digest()
        for index in indices
    )
    return np.argsort(np.frombuffer(hashes, dtype="<u8"), kind="stable")


def _check_entry(
    index: int, raw: Any, locator: Locator, options: Options
) -> tuple[PlannedEntry, tuple[str, ...]]:
    """The entry as planned and the repairs made to it; raises Rejected."""
    if not isinstance(raw, dict):
        raise Rejected(Reason.MALFORMED_ENTRY, f"the entry is a {type(raw).__name__}")
    original_id = raw.get("id")
    if isinstance(original_id, bool) or not isinstance(original_id, str | int | None):
        raise Rejected(Reason.MALFORMED_ENTRY, f"the id is a {type(original_id).__name__}")
    if raw.get("video"):
        raise Rejected(
            Reason.VIDEO, "the entry has a video; write its shards by data_prep/schema.py"
        )
    paths = _image_paths(raw.get("image"))
    if not paths and options.text_only == "drop":
        raise Rejected(Reason.TEXT_ONLY, "the entry has no image")
    conversation = check_conversation(raw.get("conversations"), len(paths))
    images = tuple(locator.find(path) for path in paths)
    try:
        checked = orjson.dumps(raw | {"conversations": conversation.turns}, default=float)
    except TypeError as error:
        raise Rejected(Reason.MALFORMED_ENTRY, str(error)) from error
    planned = PlannedEntry(index=index, paths=paths, images=images, raw=checked)
    return planned, conversation.repairs


def _image_paths(image: Any) -> tuple[str, ...]:
    if image is None or image == "":
        return ()
    if isinstance(image, str):
        return (image,)
    if isinstance(image, list) and all(isinstance(path, str) and path for path in image):
        return tuple(image)
    raise Rejected(
        Reason.MALFORMED_ENTRY, f"image is a {type(image).__name__}; expected a path or paths"
    )
