"""Write a shard as a tar whose bytes depend on its members only, and read shards back."""

import glob
import hashlib
import os
import re
import tarfile
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from braceexpand import braceexpand

from data_prep.archives import ArchiveError, kind_of
from data_prep.durable import partial_path, publish
from data_prep.options import MAX_MEMBER_BYTES
from data_prep.remote import is_remote, sizes
from data_prep.schema import (
    ChatRecord,
    SampleParts,
    SchemaError,
    check_all_there,
    parse_record,
    sample_parts,
)
from data_prep.tar_walk import Damage, OnDamage, members
from data_prep.workspace import WorkspaceError

SHARD_SUFFIXES = (".tar", ".tgz")
#: samples, or lines of a file, that are looked at before they are trained on
FIRST = 32
#: of a member that Energon does not follow
NOT_A_FILE = "{} is a link or a device, which training passes over; pack it as a file"

_BUFFER = 4 * 1024 * 1024
_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
#: What follows the checksum: type "0", no link, magic, no owner, no device, no prefix.
_HEADER_REST = b"0" + bytes(100) + b"ustar\x0000" + bytes(64 + 16 + 167)
_CHECKSUM_REST = sum(_HEADER_REST) + 8 * ord(" ")


def ustar_header(name: str, size: int) -> bytes:
    """Header of a regular file with constant owner, mode and time (POSIX.1-1988 ustar).

    The bytes of ``TarInfo.tobuf(USTAR_FORMAT)`` in a fifth of its time. ``name``: at most 100 ASCII
    characters, as `data_prep.schema` makes them; ``size`` in bytes, under 8 GiB.
    """
    if len(name) > 100 or size >= MAX_MEMBER_BYTES:
        raise ValueError(f"{name!r} of {size} bytes does not fit a ustar header")
    start = b"%-100b0000644\x000000000\x000000000\x00%011o\x0000000000000\x00" % (
        name.encode("ascii").ljust(100, b"\0"),
        size,
    )
    checksum = sum(start) + _CHECKSUM_REST
    return b"%b%06o\x00 %b" % (start, checksum, _HEADER_REST)


class ShardWriter:
    """Writes a temporary file beside the shard; `publish` renames it atomically.

    Leaving the context without `publish` removes what was written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = partial_path(path)
        self._file = self._partial.open("wb", buffering=_BUFFER)
        self._hash = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType
    ) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def add(self, name: str, data: bytes) -> None:
        """Append a file; its owner, mode and time are constant."""
        self._write(ustar_header(name, len(data)))
        self._write(data)
        self._write(_ZEROS[: -len(data) % _BLOCK])

    def publish(self) -> tuple[int, str]:
        """Finish the shard under its name; its bytes and SHA-256."""
        self._write(bytes(2 * _BLOCK))
        self._file.flush()
        os.fsync(self._file.fileno())
        publish(self._partial, self._path)
        return self._size, self._hash.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file of a sample; ``offset`` and ``size`` in bytes of the shard."""

    offset: int
    size: int

    def read(self, shard: BinaryIO) -> bytes:
        shard.seek(self.offset)
        return shard.read(self.size)


@dataclass(frozen=True, kw_only=True)
class ShardSample:
    """A sample's key, the offset of its first header, and its parts by name ("json", "0.jpg")."""

    key: str
    offset: int
    parts: dict[str, Part]
    damaged: bool  #: the shard is damaged within it or right behind it: a part may be missing


def iter_samples(
    shard: BinaryIO, on_damage: OnDamage = lambda damage: None
) -> Iterator[ShardSample]:
    """Samples of an open shard, in order, as Energon tells them apart; no content is read.

    Damaged places and the ends of joined tars are read past; ``on_damage`` hears of the former, and
    of links, which nobody follows. The shard may be read between two samples.

    Raises:
        tarfile.ReadError: the file is no tar.
    """
    key, offset, parts = "", 0, dict[str, Part]()
    gaps: list[Damage] = []

    def note(damage: Damage) -> None:
        gaps.extend([damage] if damage.between else [])
        on_damage(damage)

    def sample() -> ShardSample:
        return ShardSample(key=key, offset=offset, parts=parts, damaged=bool(gaps))

    for member in members(shard, note):
        split = split_name(member.name)
        if split is None or member.isdir():
            continue
        if not member.isreg():
            on_damage(Damage(offset=member.offset, detail=NOT_A_FILE.format(member.name)))
            continue
        if split[0] != key and parts:
            yield sample()
            parts = {}
            gaps.clear()
        if not parts:
            key, offset = split[0], member.offset
        parts[split[1]] = Part(offset=member.offset_data, size=member.size)
    if parts:
        yield sample()


def read_sample(sample: ShardSample, shard: BinaryIO) -> tuple[ChatRecord, SampleParts]:
    """A sample's JSON, and what its parts hold; SchemaError where training would reject it."""
    if sample.damaged:
        raise SchemaError("the shard is damaged there: a part may be missing or cut")
    parts = sample_parts(sample.parts, lambda part: sample.parts[part].read(shard))
    record = parse_record(sample.parts[parts.json].read(shard))
    check_all_there(record, len(parts.images), len(parts.videos))
    return record, parts


@dataclass(frozen=True, kw_only=True)
class Looked:
    """A sample that was looked at."""

    shard: str
    key: str
    fault: str  #: why training would reject it; "" where it would not for its parts or its JSON


def look_at_first(
    root: Path, names: Iterable[str], excluded: Container[str] = ()
) -> Iterator[Looked]:
    """The first `FIRST` samples of shards, read one by one as they are asked for.

    Args:
        excluded: shards, and samples as SHARD/KEY, that are left out on purpose.
    """
    return islice(_look_at(root, (name for name in names if name not in excluded), excluded), FIRST)


def _look_at(root: Path, names: Iterable[str], excluded: Container[str]) -> Iterator[Looked]:
    for name in names:
        with (root / name).open("rb") as shard:
            try:
                for sample in iter_samples(shard):
                    if f"{name}/{sample.key}" in excluded:
                        continue
                    try:
                        read_sample(sample, shard)
                        fault = ""
                    except SchemaError as error:
                        fault = str(error)
                    yield Looked(shard=name, key=sample.key, fault=fault)
            except tarfile.ReadError:
                continue  # a damaged shard, of which others speak


def split_name(name: str) -> tuple[str, str] | None:
    """Key and part's name of a member, as Energon 7.4.1 has them; None for what it passes over.

    The first dot of the file's name parts them, and folders belong to the key. A name that begins
    with a dot has no key.
    """
    if _META.match(name):
        return None
    match = _NAME.match(name)
    return (match[1], match[2]) if match else None


_META = re.compile(r"__[^/]*__(/|$)")
_NAME = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)$")


def shard_names(root: Path) -> list[str]:
    """Shards at any depth of a folder, relative to it and in order: those that Energon takes.

    Hidden files and folders are passed over.
    """
    if is_remote(root):
        return sorted(name for name in sizes(root) if name.endswith(SHARD_SUFFIXES))
    found = (
        name
        for suffix in SHARD_SUFFIXES
        for name in glob.glob(f"**/*{suffix}", root_dir=root, recursive=True)
    )
    return sorted(name for name in found if (root / name).is_file())


def open_shard(path: Path) -> BinaryIO:
    """Open a shard; WorkspaceError where it is compressed, since training reads plain tars."""
    try:
        kind = kind_of(path)
    except ArchiveError as error:
        raise WorkspaceError(f"{path} is no shard: {error}") from error
    if kind != "tar":
        raise WorkspaceError(
            f"{path} is compressed ({kind}); training reads plain tars: unpack it, and name it .tar"
        )
    return path.open("rb")


def check_shards(root: Path, names: list[str]) -> None:
    """Raise WorkspaceError for shards that Energon would list and training could not read."""
    for name in names:
        if not is_remote(root):
            open_shard(root / name).close()
        if list(braceexpand(name)) != [name]:
            raise WorkspaceError(
                f"{root / name}: Energon takes braces in a shard's name for a pattern; rename it"
            )


def shard_paths(root: Path) -> list[Path]:
    """Shards of a folder, in order; raises WorkspaceError where there is none."""
    paths = [root / name for name in shard_names(root)]
    if not paths:
        raise WorkspaceError(f"{root} holds no shards (*.tar)")
    return paths
