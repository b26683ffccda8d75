"""What Energon says of prepared shards: keys by split, and whether two folders are equal."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
from braceexpand import braceexpand
from omegaconf import OmegaConf

from data_prep.remote import folder_at, local_copy
from dct_vl.inputs.jsonl import is_jsonl, num_entries

_META = ".nv-meta"
_FILES = (".info.json", "split.yaml", "index.sqlite")


def keys_by_split(path: str | Path) -> dict[str, set[str]] | None:
    """Keys of the samples of each split; None where `path` is no folder that Energon prepared, and
    no JSONL file, whose keys are the numbers of its entries.
    """
    if is_jsonl(path):
        return {"train": set(map(str, range(num_entries(path))))} if Path(path).is_file() else None
    meta = folder_at(path) / _META
    files = [meta / name for name in _FILES]
    if not all(file.is_file() for file in files):
        return None
    # tar_file_id is a shard's place in .info.json
    shards = list(orjson.loads(files[0].read_bytes())["shard_counts"])
    parts = _split_parts(files[1])
    # whole shards, and single samples as SHARD/KEY
    excluded = set(_expand(parts.get("exclude")))
    split_of = {
        name: split for split, names in parts["split_parts"].items() for name in _expand(names)
    }
    found: dict[str, set[str]] = {split: set() for split in parts["split_parts"]}
    with closing(_open_index(files[2])) as index:
        for number, key in index.execute("SELECT tar_file_id, sample_key FROM samples"):
            shard = shards[number]
            if shard in split_of and not {shard, f"{shard}/{key}"} & excluded:
                found[split_of[shard]].add(key)
    return found


def used_shards(path: str | Path) -> list[str]:
    """Names of the shards that the splits of a folder are made of, without those left out."""
    file = folder_at(path) / _META / "split.yaml"
    if not file.is_file():
        return []
    parts = _split_parts(file)
    excluded = set(_expand(parts.get("exclude")))
    splits = (parts.get("split_parts") or {}).values()
    names = dict.fromkeys(name for patterns in splits for name in _expand(patterns))
    return [name for name in names if name not in excluded]


def key_at(path: str | Path, shard: str, byte_offset: int) -> str | None:
    """Key of the sample that begins at a byte of a shard; None where Energon's index is silent."""
    meta = folder_at(path) / _META
    if not all((meta / name).is_file() for name in _FILES):
        return None
    shards = list(orjson.loads((meta / _FILES[0]).read_bytes())["shard_counts"])
    place = shards.index(shard) if shard in shards else -1
    with closing(_open_index(meta / _FILES[2])) as index:
        found = index.execute(
            "SELECT sample_key FROM samples WHERE tar_file_id = ? AND byte_offset = ?",
            (place, byte_offset),
        ).fetchone()
    return found[0] if found else None


def _open_index(file: Path) -> sqlite3.Connection:
    database = (
        local_copy(file).absolute().as_uri()
    )  # in which # and ? of a path stand as %23 and %3F
    return sqlite3.connect(f"{database}?mode=ro", uri=True)


def data_identity(path: str | Path) -> dict[str, str] | None:
    """Hashes of prepared shards, and of how they are split.

    `shards` covers names and sample counts, and contents by the SHA-256 of the manifest beside the
    shards; shards that other tools made, and have no manifest, count by their size.

    Args:
        path: folder that Energon prepared, or a metadataset, of which only the file itself counts.

    Returns:
        `{"shards", "split"}`, 16 hexadecimal digits each; None where nothing is there.
    """
    root = folder_at(path)
    if root.is_file():
        text = root.read_bytes()
        return {"shards": _digest(text), "split": _digest(text)}
    info, split = (root / _META / name for name in _FILES[:2])
    if not (info.is_file() and split.is_file()):
        return None
    manifest = root / "manifest.json"
    listed = orjson.loads(manifest.read_bytes()).get("shards", []) if manifest.is_file() else []
    hashes = {shard["name"]: shard["sha256"] for shard in listed if shard.get("sha256")}
    counts = orjson.loads(info.read_bytes())["shard_counts"]
    shards = [
        [name, count, hashes.get(name) or _size(root / name)]
        for name, count in sorted(counts.items())
    ]
    parts = _split_parts(split)
    return {
        "shards": _digest(orjson.dumps(shards)),
        "split": _digest(orjson.dumps([parts["split_parts"], parts.get("exclude") or []])),
    }


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def _expand(patterns: Sequence[str] | None) -> Iterator[str]:
    for pattern in patterns or ():
        yield from braceexpand(pattern)


def _split_parts(file: Path) -> dict[str, Any]:
    parts = OmegaConf.to_container(OmegaConf.create(file.read_text(encoding="utf-8")))
    assert isinstance(parts, dict)
    return {str(name): value for name, value in parts.items()}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
