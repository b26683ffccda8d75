"""A plan on disk: ranges of accepted entries, one a shard."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from data_prep.locate import Location
from data_prep.workspace import Round


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
class Plan:
    """What ``plan.json`` holds."""

    json_name: str
    inputs: dict[str, list[int]]  #: size and mtime in ns of every input file
    entries: int  #: in this round: all of the JSON's, or those that are retried
    rejected: dict[str, int]  #: by reason, before any image was read
    repairs: dict[str, int]  #: by name
    source_bytes: int  #: of all located images
    shard_size: int
    shards: tuple[PlannedShard, ...]


def load_plan(path: Path) -> Plan:
    """Read a plan back."""
    fields = orjson.loads(path.read_bytes())
    shards = tuple(PlannedShard(**shard) for shard in fields.pop("shards"))
    return Plan(**fields, shards=shards)


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
