"""Energon's ``prepare`` as a process of its own, with shards read as this project reads them.

Energon 7.4.1 ends its index of a shard where ``tarfile`` believes the tar to end: at a damaged
header, or at the joint of tars that were put together with ``cat``. What is behind that would never
be trained on, without a word.

    python -m data_prep.indexing DAMAGE_FILE PIPE < ORDER

appends what is damaged to DAMAGE_FILE, a line of JSON each: the shard, and what is wrong. PIPE is a
descriptor that ends with the process that gave the order: a killed one cannot stop this one and its
workers, and they would go on writing.
"""

import os
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from data_prep.prepared import PARTS
from data_prep.remote import is_remote
from data_prep.shards import NOT_A_FILE, split_name
from data_prep.tar_walk import Damage, walk

#: Where Energon writes the split that it makes, which then takes the place of `split.yaml`.
MADE_SPLIT = "split.made.yaml"
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
    own, or of a former version. In a store this would be two requests each: it is not asked there.
    """
    if is_remote(root):
        return []
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


def index(order: dict[str, Any]) -> None:
    """Write Energon's index of the shards that `data_prep.energon` names, and a split by ratio."""
    # torch comes along
    from megatron.energon.epathlib import EPath
    from megatron.energon.flavors import BaseWebdatasetFactory
    from megatron.energon.media.extractor import MediaFilterConfig

    BaseWebdatasetFactory.prepare_dataset(
        EPath(order["root"]),
        order["names"],
        split_parts_ratio=list(zip(PARTS, order["ratio"] or [1, 0, 0], strict=True)),
        split_config=MADE_SPLIT,
        shuffle_seed=None,
        workers=order["num_workers"],
        media_filter=MediaFilterConfig.parse(glob=None, header=False, extension=True),
    )


def _end_with(pipe: int) -> None:
    def wait() -> None:
        os.read(pipe, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(damage_file: str, parents_pipe: str) -> None:
    """Run Energon's indexing as standard input orders it."""
    # in the processes that Energon forks as well
    os.register_at_fork(after_in_child=lambda: _end_with(int(parents_pipe)))
    _end_with(int(parents_pipe))
    read_on(os.open(damage_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
    index(orjson.loads(sys.stdin.buffer.read()))


if __name__ == "__main__":
    main(*sys.argv[1:])
