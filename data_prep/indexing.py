"""Energon's ``prepare`` as a process of its own, with shards read as this project reads them.

Energon 7.4.1 ends its index of a shard where ``tarfile`` believes the tar to end: at a damaged
header, or at the joint of tars that were put together with ``cat``. What is behind that would never
be trained on, without a word. It also takes ``[`` in the folder's own path for a pattern.

    python -m data_prep.indexing DAMAGE_FILE prepare FOLDER …

appends what is damaged to DAMAGE_FILE, a line of JSON each: the shard, and what is wrong.
"""

import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from data_prep.shards import NOT_A_FILE, shard_names, split_name
from data_prep.tar_walk import Damage, walk

#: bytes of the zeros that end a tar
_END_MARK = 1024


def read_on(damage_file: int) -> None:
    """Let Energon's indexing in this process, and in those that it forks, read shards to their end.

    Args:
        damage_file: descriptor that takes a line for each damaged place.
    """
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

    def sample_members(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
        """Members that are parts of samples, each with the key and the part's name."""

        def note(damage: Damage) -> None:
            # one write, so that lines of several workers stay whole
            os.write(damage_file, orjson.dumps([str(tar.name), str(damage)]) + b"\n")

        for member in walk(tar, note):
            split = split_name(member.name)
            if split is not None and member.isreg():
                yield member, *split
            elif split is not None and not member.isdir():
                note(Damage(offset=member.offset, detail=NOT_A_FILE.format(member.name)))

    tarfile.TarFile.ignore_zeros = True
    WebdatasetPreparator._iter_tar_sample_members = staticmethod(sample_members)


def read_damage(root: Path, path: Path) -> dict[str, list[str]]:
    """What `read_on` wrote down: damaged places by shard, in order."""
    found: dict[str, list[str]] = {}
    for line in dict.fromkeys(path.read_bytes().splitlines()):
        shard, detail = orjson.loads(line)
        # Energon may have followed links on the way to the folder
        for base in (root.absolute(), root.resolve()):
            shard = shard.removeprefix(f"{base}/")
        found.setdefault(shard, []).append(detail)
    return found


def unread_ends(root: Path, names: list[str]) -> list[str]:
    """Those of the shards that hold something behind the end of their index: an index of Energon's
    own, or of a former version.
    """
    return [name for name in names if _holds_more(root / name)]


def _holds_more(shard: Path) -> bool:
    try:
        offsets = shard.with_suffix(".tar.idx").read_bytes()
        size = shard.stat().st_size
    except FileNotFoundError:
        return False
    end = int.from_bytes(offsets[-8:], "little")
    if size - end <= _END_MARK:
        return False
    with shard.open("rb") as file:
        file.seek(end)
        return any(chunk.strip(b"\0") for chunk in iter(lambda: file.read(2**16), b""))


def _glob_shards() -> None:
    """Let Energon find the shards of a local folder by the rule of all other commands."""
    from megatron.energon.epathlib import EPath

    energons = EPath.glob

    def glob(self: Any, pattern: str) -> Iterator[Any]:
        if not self.is_local():
            yield from energons(self, pattern)
            return
        for name in shard_names(Path(str(self.local_path()))):
            if name.endswith(pattern.removeprefix("**/*")):
                yield self / name

    EPath.glob = glob


def main(arguments: list[str]) -> None:
    """Run Energon's command line."""
    from megatron.energon.cli.main import main as energon

    read_on(os.open(arguments[0], os.O_WRONLY | os.O_APPEND | os.O_CREAT))
    _glob_shards()
    sys.argv = ["energon", *arguments[1:]]
    energon()


if __name__ == "__main__":
    main(sys.argv[1:])
