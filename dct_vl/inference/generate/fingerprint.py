"""Which weights gave an answer: the same name and step can hold others after another training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from dct_vl.runs.checkpoint_files import read_meta

_PLACES, _BYTES = 256, 4096


def checkpoint_fingerprint(checkpoint: Path) -> str:
    """The id that training gave a checkpoint; without one, for imported ones, that of its files.

    Raises:
        ValueError: not a checkpoint.
    """
    given = read_meta(checkpoint).get("id")
    return str(given) if given else files_fingerprint(checkpoint, ("weights/*",))


def files_fingerprint(folder: Path, patterns: Sequence[str]) -> str:
    """Hash of names, sizes and 256 evenly spaced places of the files that match.

    Gigabytes are not read whole. It stays the same in a copy.
    """
    found = hashlib.sha256()
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(files):
        size = path.stat().st_size
        found.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with open(path, "rb") as file:
            for place in sorted({size * n // _PLACES for n in range(_PLACES)}):
                file.seek(place)
                found.update(file.read(_BYTES))
    return found.hexdigest()[:32]
