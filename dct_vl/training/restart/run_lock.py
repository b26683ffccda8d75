"""One training at a time in a run's folder: a second one would remove what the first one writes."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from dct_vl.errors import ConfigError

LOCK_NAME = "trainer.lock"
#: of the runs that this process has claimed; open as long as it lives
_held: dict[Path, int] = {}


def claim(folder: Path) -> None:
    """Lock a run's folder until this process ends, however it ends.

    A lock of `fcntl`: it goes with the process, which no child inherits it from, and is known to
    other machines that share the folder. Where the file system has no locks there is none.

    Raises:
        ConfigError: another process trains in the folder.
    """
    path = (folder / LOCK_NAME).resolve()
    if path in _held:
        return  # opening the file again and closing it would give the lock up
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    _held[path] = file
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        owner = os.pread(file, 200, 0).decode(errors="replace").strip()
        del _held[path]
        os.close(file)
        raise ConfigError(
            f"{folder}: another process trains there ({owner}): wait until it has ended, end it, "
            "or use another experiment_name"
        ) from None
    except OSError:
        return
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.uname().nodename}, pid {os.getpid()}".encode(), 0)
