"""The plan: which entries go into which shard, from the source and the tar index alone.

Entries are checked and their media located in the order of the source; none is decoded. Accepted
entries go to a file of lines, and shards are ranges of that file's (perhaps shuffled) order. Bytes
that come inside an entry go to a spool beside it, where a worker finds them by offset.
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
from typing import Any, BinaryIO, cast

import numpy as np
import orjson

from data_prep.conversation import check_conversation
from data_prep.durable import sync_folder, write_durably
from data_prep.locate import Location, Locator
from data_prep.options import DEFAULT_SHARD_SIZE, MIN_SHARDS, Options
from data_prep.quarantine import Reason, Rejected, quarantined_indices, reject_line
from data_prep.sources import Entry, Inline, Media, Place, Refusal, Row, Source, read_entries
from data_prep.workspace import Round, read_json, unreadable


@dataclass(frozen=True, kw_only=True)
class PlannedEntry:
    """An entry that was accepted so far."""

    index: int  #: position in the source, from 0
    paths: tuple[str, ...]  #: image paths as the entry gives them
    images: tuple[Location, ...]  #: where they lie
    video_paths: tuple[str, ...] = ()  #: likewise
    videos: tuple[Location, ...] = ()
    raw: bytes  #: the entry as LLaVA's JSON, its conversation checked and repaired

    @property
    def source_bytes(self) -> int:
        """Bytes of its media."""
        return sum(location.size for location in (*self.images, *self.videos))

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
    source_bytes: int  #: of all located media
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
    added: list[Any] = [entry.index, entry.paths, list(map(_as_list, entry.images))]
    if entry.videos:
        added += [entry.video_paths, list(map(_as_list, entry.videos))]
    return b"%s\t%s\n" % (orjson.dumps(added), entry.raw)


def from_line(line: bytes) -> PlannedEntry:
    """Inverse of `to_line`."""
    added, _, raw = line.rstrip(b"\n").partition(b"\t")
    index, paths, images, *rest = orjson.loads(added)
    video_paths, videos = rest or ((), ())
    return PlannedEntry(
        index=index,
        paths=tuple(paths),
        images=tuple(map(_from_list, images)),
        video_paths=tuple(video_paths),
        videos=tuple(map(_from_list, videos)),
        raw=raw,
    )


def _as_list(one: Location) -> list[Any]:
    short = [one.source, one.file, one.offset, one.size]
    return short if one.place == "file" else [*short, one.place, one.column]


def _from_list(fields: list[Any]) -> Location:
    source, file, offset, size, *rest = fields
    place, column = rest or ("file", "")
    return Location(
        source=source,
        file=file,
        offset=offset,
        size=size,
        place=cast(Place, place),
        column=column,
    )


def make_plan(
    target: Round,
    source: Source,
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
    with (
        target.entries.open("wb") as accepted,
        target.rejects.open("wb") as rejects,
        target.spool.open("wb") as spool,
    ):
        for entry in read_entries(source):
            if only is not None and entry.index not in only:
                continue
            on_entry()
            try:
                planned, repaired = check_entry(entry, locator, spool, options)
            except Rejected as rejection:
                rejected[rejection.reason.value] += 1
                rejects.write(reject_line(entry.index, entry.raw, rejection, line=entry.line))
                continue
            repairs.update(repaired)
            offsets.append(accepted.tell())
            sizes.append(planned.source_bytes)
            indices.append(entry.index)
            accepted.write(to_line(planned))
        for file in (accepted, rejects, spool):
            file.flush()
            os.fsync(file.fileno())
    order = _order(indices, options.shuffle_seed)
    write_durably(target.order, np.asarray(offsets, dtype=np.int64)[order].tobytes())
    shard_size, counts = shard_counts(np.asarray(sizes, dtype=np.int64)[order], options)
    starts = np.cumsum([0, *counts]).tolist()
    plan = RoundPlan(
        json_name=source.name,
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

    ``sizes``: bytes of each entry's source media, int64, in order. Without ``--shard-size`` a set
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


def check_entry(
    entry: Entry | Refusal, locator: Locator, spool: BinaryIO, options: Options
) -> tuple[PlannedEntry, tuple[str, ...]]:
    """The entry as planned and the repairs made to it; raises Rejected."""
    if isinstance(entry, Refusal):
        raise Rejected(Reason(entry.reason), entry.detail)
    media = (*entry.images, *entry.videos)
    if not media and options.text_only == "drop":
        raise Rejected(Reason.TEXT_ONLY, "the entry has no image or video")
    num_images = len(entry.images)
    conversation = check_conversation(
        entry.conversations, num_images, len(entry.videos), control=options.control_tokens
    )
    # in two steps: nothing is spooled for an entry that is then rejected
    found = [None if one.held else locator.find(one.path) for one in entry.images]
    found += [_find_video(one, locator, options) for one in entry.videos]
    try:
        checked = orjson.dumps(entry.raw | {"conversations": conversation.turns}, default=float)
    except TypeError as error:
        raise Rejected(Reason.MALFORMED_ENTRY, str(error)) from error
    places = tuple(
        [place or _place_held(one.held, spool) for one, place in zip(media, found, strict=True)]
    )
    planned = PlannedEntry(
        index=entry.index,
        paths=tuple([one.path for one in entry.images]),
        images=places[:num_images],
        video_paths=tuple([one.path for one in entry.videos]),
        videos=places[num_images:],
        raw=checked,
    )
    return planned, conversation.repairs


def _find_video(video: Media, locator: Locator, options: Options) -> Location | None:
    """Where a path leads to; None for bytes that came with their entry."""
    found = None if video.held else locator.find(video.path, "video")
    place = video.held or found
    if place and place.size > options.max_video_bytes:
        raise Rejected(
            Reason.TOO_MANY_BYTES,
            f"{video.path} of {place.size} bytes is over --max-video-bytes "
            f"{options.max_video_bytes}",
        )
    return found


def _place_held(held: Inline | Row | None, spool: BinaryIO) -> Location:
    """Where a worker finds bytes that came with their entry."""
    assert held is not None, "a path was found, or has raised"
    name = Path(held.file).stem
    if isinstance(held, Row):
        return Location(
            source=name,
            file=held.file,
            offset=held.number,
            size=held.size,
            place="row",
            column=held.column,
        )
    offset = spool.tell()
    spool.write(held.data)
    return Location(source=name, file=held.file, offset=offset, size=len(held.data), place="spool")
