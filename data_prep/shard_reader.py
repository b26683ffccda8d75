"""Reading shards back: which samples a shard holds and where their parts lie."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


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
