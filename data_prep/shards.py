"""Write a shard as a tar whose bytes depend on its members only, and read shards back."""

import hashlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from data_prep.durable import partial_path, publish
from data_prep.options import MAX_MEMBER_BYTES

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


def iter_samples(shard: BinaryIO) -> Iterator[ShardSample]:
    """Samples of an open shard, in order; no content is read. Raises tarfile.ReadError.

    A dot parts the key from the part's name, as in WebDataset and Energon. The shard may be read
    between two samples.
    """
    key, offset, parts = "", 0, dict[str, Part]()
    with tarfile.open(fileobj=shard, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]
            member_key, _, name = member.name.partition(".")
            if member_key != key and parts:
                yield ShardSample(key=key, offset=offset, parts=parts)
                parts = {}
            if not parts:
                key, offset = member_key, member.offset
            parts[name] = Part(offset=member.offset_data, size=member.size)
    if parts:
        yield ShardSample(key=key, offset=offset, parts=parts)


def shard_paths(root: Path) -> list[Path]:
    """Shards of a folder, in order."""
    return sorted(root.glob("*.tar"))
