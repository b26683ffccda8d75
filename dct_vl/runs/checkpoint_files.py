"""A run's checkpoints on disk, and whether each is intact.

A checkpoint is the folder RUN/checkpoints/step-00000100; its meta file lists every file with its
size.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dct_vl.runs.run_files import VALIDATION_NAME, read_json_lines

#: file inside a checkpoint that says what made it
META_NAME = "dct_vl.json"
#: files up to this many bytes are checked by all of their contents; of larger ones, tensors, that
#: would take minutes, and some pieces from their start to their end stand for the rest
_SMALL, _NUM_PIECES, _PIECE = 4 << 20, 32, 32 << 10
_NAME = re.compile(r"step-(\d{8})")


def read_meta(checkpoint: str | Path) -> dict[str, Any]:
    """What `META_NAME` of a checkpoint holds; a ValueError where it cannot be read."""
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


def checkpoint_step(path: Path) -> int:
    """Step of a checkpoint's folder; raises ValueError for any other name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is not a checkpoint of this project (step-00000100)")
    return int(match[1])


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return [path for path in checkpoint_folders(run_dir) if (path / META_NAME).is_file()]


def newest_checkpoint(run_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, if there is one."""
    found = list_checkpoints(run_dir)
    return found[-1] if found else None


def checkpoint_folders(run_dir: str | Path) -> list[Path]:
    """All checkpoints of a run under their final names, oldest first."""
    folder = Path(run_dir) / "checkpoints"
    found = [p for p in folder.glob("step-*") if _NAME.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found)


@dataclass(frozen=True, kw_only=True)
class NewestIntact:
    """The newest checkpoint of a run whose files are intact."""

    path: Path | None
    #: newer ones, newest first, with what is wrong with them
    damaged: tuple[tuple[Path, str], ...]


def newest_intact(run_dir: str | Path) -> NewestIntact:
    """Look from the newest checkpoint backwards for one without a fault."""
    damaged: list[tuple[Path, str]] = []
    for path in reversed(checkpoint_folders(run_dir)):
        fault = find_fault(path)
        if fault is None:
            return NewestIntact(path=path, damaged=tuple(damaged))
        damaged.append((path, fault))
    return NewestIntact(path=None, damaged=tuple(damaged))


def best_checkpoints(run_dir: str | Path, count: int) -> list[Path]:
    """The complete checkpoints of lowest validation loss, best first.

    A checkpoint's loss is that of the validation at its step; one without does not count.
    """
    entries = read_json_lines(Path(run_dir) / VALIDATION_NAME)
    losses = {e["step"]: e["loss"] for e in entries if e.get("loss") is not None}
    scored = [p for p in list_checkpoints(run_dir) if checkpoint_step(p) in losses]
    return sorted(scored, key=lambda path: (losses[checkpoint_step(path)], path))[:count]


#: of a file's fingerprint
_NUM_SAMPLED, _BYTES_EACH = 256, 4096


def weights_fingerprint(folder: Path) -> str:
    """The id that training gave a checkpoint; of what has none (imported ones, Hugging Face
    folders) that of its files.

    Raises:
        ValueError: neither.
    """
    if (folder / "config.json").is_file():
        return files_fingerprint(folder, ("*.safetensors", "*.bin", "*.json"))
    given = read_meta(folder).get("id")
    return str(given) if given else files_fingerprint(folder, ("weights/*",))


def files_fingerprint(folder: Path, patterns: Sequence[str]) -> str:
    """Hash of names, sizes and 256 evenly spaced blocks of the files that match.

    Gigabytes are not read whole. It stays the same in a copy.
    """
    found = hashlib.sha256()
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(files):
        size = path.stat().st_size
        found.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with open(path, "rb") as file:
            for offset in sorted({size * n // _NUM_SAMPLED for n in range(_NUM_SAMPLED)}):
                file.seek(offset)
                found.update(file.read(_BYTES_EACH))
    return found.hexdigest()[:32]
