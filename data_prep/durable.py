"""Atomic writes: readers see the old file or the complete new one, whatever is killed."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from data_prep.remote import is_remote

#: Files being written end in this, with the writer's process id before it. Energon looks for
#: ``*.tar`` below the folder, so an unfinished shard must not end in that.
PARTIAL_SUFFIX = ".partial"


def partial_path(final: Path) -> Path:
    """Where ``final`` is written before `publish`: beside it, one name a process and machine."""
    return final.with_name(f"{final.name}.{socket.gethostname()}-{os.getpid()}{PARTIAL_SUFFIX}")


def publish(partial: Path, final: Path) -> None:
    """Give a finished, already fsynced file its name, and make the name durable."""
    os.replace(partial, final)
    sync_folder(final.parent)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write a file that takes its name at the end of the block; its folder is made.

    Where the block fails, an earlier file stays and nothing else is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    publish(partial, path)


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file in one atomic step, as an object store does by itself."""
    if is_remote(path):
        path.write_bytes(data)
        return
    with atomic_write(path) as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Fsync a folder, without which a rename in it may be lost with the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partials(folder: Path) -> None:
    """Remove what killed writers left in ``folder``; only while no writer runs there."""
    for leftover in folder.glob(f"*{PARTIAL_SUFFIX}"):
        leftover.unlink()
