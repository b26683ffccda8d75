"""Files that are whole or absent, whatever kills the process or the machine."""

import os
import socket
from pathlib import Path

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


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file so that a reader sees the old bytes or all of the new ones."""
    partial = partial_path(path)
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    publish(partial, path)


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
