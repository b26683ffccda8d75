"""What Energon's `prepare` left in a folder of shards, and whether it still covers all of them."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from braceexpand import braceexpand

from data_prep.manifest import check_closed
from data_prep.remote import explained, folder_at, is_remote, is_url, local_copy
from data_prep.shards import shard_names
from data_prep.workspace import Workspace, WorkspaceError, listed, read_json

PARTS = ("train", "val", "test")
META = Path(".nv-meta")
#: Energon's marker of a prepared folder.
INFO = META / ".info.json"
#: The same, as versions before 5 wrote it; 7.4.1 reads it still.
_OLD_INFO = META / ".info.yaml"
SPLITS = (META / "split.yaml", META / "split.json")
_METADATASETS = (".yaml", ".yml")
DATABASE = META / "index.sqlite"


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Which shards make up which part."""

    parts: dict[str, tuple[str, ...]]  #: names of shards by part
    excluded: frozenset[str]  #: shards, and samples as SHARD/KEY, that are left out on purpose

    @property
    def named(self) -> frozenset[str]:
        """Every shard that a part holds or that is left out on purpose."""
        return self.excluded.union(*self.parts.values())


@dataclass(frozen=True, kw_only=True)
class EnergonIndex(Splits):
    """The index of a prepared folder."""

    counts: dict[str, int]  #: samples by shard


def prepare_command(root: Path) -> str:
    """What to type where the index of a folder is of no use."""
    return f"`python -m data_prep prepare {root}`"


def check_prepared(path: Path) -> None:
    """Do conversion, index and shards of a folder belong together?

    Args:
        path: folder of shards, or a metadataset, whose folders are looked at one after the other.

    Raises:
        WorkspaceError: the conversion is not finished, or the index is absent, half made or of
            fewer shards or other samples than there are; with the command that mends it.
    """
    with explained(path):
        if path.is_file():
            members = _folders_of(path) if path.suffix in _METADATASETS else ()
            for member in members:
                check_prepared(member)
        else:
            _check_folder(path)


def _check_folder(path: Path) -> None:
    workspace = Workspace(path)
    manifest = check_closed(workspace)
    index = read_index(path)
    again = f"run {prepare_command(path)} (again)"
    if manifest is None:
        expected = dict.fromkeys(shard_names(path), -1)
        what = "shards that are there"
    else:
        expected = {shard["name"]: shard["samples"] for shard in manifest["shards"]}
        what = "shards of the manifest"
    used = {name: count for name, count in expected.items() if name not in index.excluded}
    missing = [name for name in used if name not in index.counts]
    if missing:
        raise WorkspaceError(
            f"Energon's index of {path} lacks {len(missing)} of {len(expected)} {what} "
            f"({listed(missing)}): {again}, or name them under `exclude` in {path / SPLITS[0]}"
        )
    # `prepare` has said of these that samples are lost, and indexed the others
    damaged = read_mark(workspace).get("damage", {})
    other = [n for n, count in used.items() if count not in (-1, index.counts[n])]
    other = [name for name in other if name not in damaged]
    if other:
        raise WorkspaceError(
            f"Energon's index of {path} counts {index.counts[other[0]]} samples in {other[0]}, the "
            f"manifest {used[other[0]]} ({len(other)} shards differ): {again}"
        )
    _check_database(path, index)


def read_index(root: Path) -> EnergonIndex:
    """The index of a folder; WorkspaceError where it is not prepared, or half."""
    info = next((root / name for name in (INFO, _OLD_INFO) if (root / name).is_file()), None)
    splits = read_splits(root)
    lacking = [
        name
        for name, found in (
            (INFO.as_posix(), info is not None),
            (SPLITS[0].as_posix(), splits is not None),
            ((META / "dataset.yaml").as_posix(), (root / META / "dataset.yaml").is_file()),
        )
        if not found
    ]
    if len(lacking) == 3:
        energons = "" if is_remote(root) else f"`energon prepare {root}` or "
        raise WorkspaceError(f"{root} has no .nv-meta: run {energons}{prepare_command(root)} first")
    if info is None or splits is None or lacking:
        raise WorkspaceError(
            f"{root} is prepared by half ({', '.join(lacking)} is not there): "
            f"run {prepare_command(root)} again"
        )
    counts = _load(info).get("shard_counts")
    if not isinstance(counts, dict) or not all(isinstance(n, int) for n in counts.values()):
        raise WorkspaceError(
            f"{info} has no samples by shard (it was cut or changed): "
            f"run {prepare_command(root)} again"
        )
    return EnergonIndex(counts=counts, parts=splits.parts, excluded=splits.excluded)


def read_mark(workspace: Workspace) -> dict[str, Any]:
    """What `prepare` noted of the last time; {} where that is not known."""
    try:
        found = read_json(workspace.prepared)
    except (FileNotFoundError, WorkspaceError):
        return {}
    known = isinstance(found, dict) and found.keys() >= {"split", "shards", "energon"}
    return found if known else {}


def read_splits(root: Path) -> Splits | None:
    """The parts as ``split.yaml`` has them; None where there is no such file, or an empty one."""
    file = split_file(root)
    if file is None:
        return None
    found = _load(file)
    parts, excluded = found.get("split_parts"), found.get("exclude") or []
    if not isinstance(parts, dict) or not isinstance(excluded, list):
        raise WorkspaceError(
            f"{file} has no split_parts: mend it, or remove it and run {prepare_command(root)}"
        )
    return Splits(
        parts={str(part): tuple(_expand(names)) for part, names in parts.items()},
        excluded=frozenset(_expand(excluded)),
    )


def split_file(root: Path) -> Path | None:
    """Where the split is written; a writer that was killed leaves an empty file, which is none."""
    files = [root / name for name in SPLITS]
    return next((file for file in files if file.is_file() and file.stat().st_size), None)


def _check_database(root: Path, index: EnergonIndex) -> None:
    """Energon writes its samples in one go, so that the last row tells whether it came through."""
    if not (root / DATABASE).is_file():
        return  # as versions before 5 left it
    address = f"{local_copy(root / DATABASE).absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True)) as database:
            (rows,) = database.execute("SELECT max(rowid) FROM samples").fetchone()
    except sqlite3.Error as error:
        rows = str(error)
    samples = sum(index.counts.values())
    if rows != samples:
        held = f"holds {rows or 0} samples" if not isinstance(rows, str) else f"is broken ({rows})"
        raise WorkspaceError(
            f"{root / DATABASE} {held} where {INFO.as_posix()} counts {samples}: "
            f"run {prepare_command(root)} again"
        )


def _folders_of(metadataset: Path) -> Iterator[Path]:
    """Folders and metadatasets that a metadataset draws from, as far as they are there."""
    waiting: list[Any] = [_load(metadataset)]
    found: dict[Path, None] = {}
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            path = item.get("path")
            # one with files of its own choosing is Energon's to read
            if isinstance(path, str) and not item.keys() & {"split_config", "dataset_config"}:
                found[folder_at(path) if is_url(path) else metadataset.parent / path] = None
            waiting += [value for key, value in item.items() if key != "aux"]
        elif isinstance(item, list):
            waiting += item
    for path in found:
        if path.is_dir() or (path.suffix in _METADATASETS and path.is_file()):
            yield path


def _load(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        # JSON is YAML, but libyaml's reader takes a hundred times as long
        found = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise WorkspaceError(
            f"{file} cannot be read ({reason}): mend it, or remove it and prepare its folder again"
        ) from error
    return found if isinstance(found, dict) else {}


def _expand(patterns: Any) -> Iterator[str]:
    for pattern in patterns or ():
        yield from braceexpand(str(pattern))
