"""Is a checkpoint as it was written? Its meta file lists every file with its size."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: file inside a checkpoint that says what made it
META_NAME = "dct_vl.json"
#: files up to this many bytes are checked by all of their contents; of larger ones, tensors, that
#: would take minutes, and some pieces from their start to their end stand for the rest
_SMALL, _NUM_PIECES, _PIECE = 4 << 20, 32, 32 << 10


def read_meta(checkpoint: str | Path) -> dict[str, Any]:
    """What `META_NAME` of a checkpoint holds.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    path = Path(checkpoint) / META_NAME
    if not path.is_file():
        raise ValueError(f"{checkpoint} is not a checkpoint of this project: no {META_NAME} in it")
    try:
        meta = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(meta, dict) or "step" not in meta:
        raise ValueError(f"{path} does not say its step")
    return meta


def list_files(checkpoint: Path) -> dict[str, list[int]]:
    """Relative path → [bytes, CRC-32 of what `_checksum` reads] of every file but the meta file."""
    found: dict[str, list[int]] = {}
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
        name = path.relative_to(checkpoint).as_posix()
        if name != META_NAME:
            size = path.stat().st_size
            found[name] = [size, _checksum(path, size)]
    return found


def _checksum(path: Path, size: int) -> int:
    if size <= _SMALL:
        return zlib.crc32(path.read_bytes())
    checksum = 0
    with open(path, "rb") as file:
        for number in range(_NUM_PIECES):
            file.seek(number * (size - _PIECE) // (_NUM_PIECES - 1))
            checksum = zlib.crc32(file.read(_PIECE), checksum)
    return checksum


def find_fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files; None where nothing is.

    Files without a checksum are taken as they are, and so are checkpoints without a list: earlier
    versions wrote them.
    """
    try:
        meta = read_meta(checkpoint)
    except ValueError as error:
        return str(error)
    files: Mapping[str, tuple[int, int | None]] = meta.get("files", {})
    for name, (size, checksum) in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        found = path.stat().st_size
        if found != size:
            return f"{name} has {found} bytes, {size} were written"
        if checksum is not None and _checksum(path, size) != checksum:
            return f"{name} has other contents than were written"
    return None
