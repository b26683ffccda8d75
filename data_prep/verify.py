"""Check every shard against the manifest, its own headers and Energon's index."""

import hashlib
import sqlite3
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.manifest import load_manifest
from data_prep.prepared import DATABASE, META, prepare_command, read_index
from data_prep.quarantine import quarantined_indices
from data_prep.schema import SchemaError
from data_prep.shards import ShardSample, iter_samples, read_sample, shard_names
from data_prep.tar_walk import Damage
from data_prep.workspace import Workspace, WorkspaceError
from dct_tokenizer.image_headers import JpegEndsEarly, read_jpeg_header

_CHUNK = 4 * 1024 * 1024
#: Problems reported per shard; a broken one would report every sample.
_MAX_PER_SHARD = 10


@dataclass(frozen=True, kw_only=True)
class ShardFindings:
    """What was read in a shard, and what is wrong with it."""

    name: str
    samples: list[tuple[str, int]]  #: key and offset of each
    problems: list[str]


def verify(root: Path, *, workers: int) -> Iterator[ShardFindings]:
    """Check all shards in parallel, then the folder as a whole (name: "the folder").

    Raises WorkspaceError where there is no manifest.
    """
    workspace = Workspace(root)
    try:
        manifest = load_manifest(workspace)
    except FileNotFoundError as error:
        raise WorkspaceError(
            f"{root} has no manifest: its run is not finished, or the shards were not made here"
        ) from error
    expected = {shard["name"]: shard for shard in manifest["shards"]}
    found: dict[str, list[tuple[str, int]]] = {}
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for findings in pool.map(
            _check_shard, [root / name for name in expected], expected.values()
        ):
            found[findings.name] = findings.samples
            yield findings
    problems = [
        f"{name} is not in the manifest; Energon would read it"
        for name in shard_names(root)
        if name not in expected
    ]
    problems += _check_keys(found)
    problems += _check_counts(workspace, manifest)
    problems += _check_energon(root, found)
    if len(workspace.rounds()) > manifest["rounds"]:
        problems.append("a --retry-quarantined is not finished; run it again")
    yield ShardFindings(name="the folder", samples=[], problems=problems)


def _check_shard(path: Path, expected: dict[str, Any]) -> ShardFindings:
    problems: list[str] = []
    samples: list[tuple[str, int]] = []

    def note(damage: Damage) -> None:
        problems.append(f"damaged at {damage}")

    try:
        with path.open("rb") as shard:
            problems += _check_bytes(shard, expected)
            shard.seek(0)
            for sample in iter_samples(shard, note):
                samples.append((sample.key, sample.offset))
                if len(problems) < _MAX_PER_SHARD:
                    problems += [f"{sample.key}: {p}" for p in _check_sample(sample, shard)]
    except (OSError, tarfile.ReadError) as error:
        problems.append(str(error))
    if len(samples) != expected["samples"]:
        problems.append(f"{len(samples)} samples; the manifest has {expected['samples']}")
    return ShardFindings(name=path.name, samples=samples, problems=problems)


def _check_bytes(shard: BinaryIO, expected: dict[str, Any]) -> list[str]:
    digest, size = hashlib.sha256(), 0
    while chunk := shard.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
    if size != expected["bytes"]:
        return [f"{size} bytes; the manifest has {expected['bytes']}"]
    if digest.hexdigest() != expected["sha256"]:
        return [f"SHA-256 {digest.hexdigest()}; the manifest has {expected['sha256']}"]
    return []


def _check_sample(sample: ShardSample, shard: BinaryIO) -> list[str]:
    try:
        record, named = read_sample(sample, shard)
    except SchemaError as error:
        return [str(error)]
    parts, videos = named.images, named.videos
    if len(parts) != len(record.images) or len(parts) != len(record.sizes):
        return [f"{len(parts)} image parts, {len(record.images)} paths, {len(record.sizes)} sizes"]
    problems = []
    if len(videos) != len(record.videos):
        problems.append(f"{len(videos)} video parts, {len(record.videos)} paths")
    for part, size in zip(parts, record.sizes, strict=True):
        try:
            header = read_jpeg_header(sample.parts[part].read(shard))
        except JpegEndsEarly:
            header = None
        if header is None or (header.height, header.width) != size:
            problems.append(f"{part} is no JPEG of height and width {size}")
    return problems


def _check_keys(found: dict[str, list[tuple[str, int]]]) -> list[str]:
    """Energon needs keys that are unique over all shards."""
    seen: dict[str, str] = {}
    problems = []
    for name, samples in found.items():
        for key, _ in samples:
            if key in seen:
                problems.append(f"key {key} is in {seen[key]} and in {name}")
            seen[key] = name
    return problems


def _check_counts(workspace: Workspace, manifest: dict[str, Any]) -> list[str]:
    try:
        quarantined = len(quarantined_indices(workspace.quarantine))
    except (OSError, WorkspaceError) as error:
        return [str(error)]
    if manifest["kept"] + quarantined != manifest["entries"]:
        return [
            f"{manifest['kept']} kept and {quarantined} lines of quarantine do not make up "
            f"{manifest['entries']} entries"
        ]
    return []


def _check_energon(root: Path, found: dict[str, list[tuple[str, int]]]) -> list[str]:
    """Compare the index that ``energon prepare`` made, where there is one."""
    if not (root / META).exists():
        return []
    again = f"prepare the folder again: {prepare_command(root)}"
    try:
        counts = read_index(root).counts
    except WorkspaceError as error:
        return [str(error)]
    if counts != {name: len(samples) for name, samples in found.items()}:
        return [f"Energon's index counts other samples than the shards hold; {again}"]
    address = f"{(root / DATABASE).absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True)) as database:
            rows = database.execute(
                "SELECT tar_file_id, sample_key, byte_offset FROM samples "
                "ORDER BY tar_file_id, sample_index"
            ).fetchall()
    except sqlite3.Error as error:
        return [f"{root / DATABASE} cannot be read ({error}); {again}"]
    names = list(counts)
    indexed: dict[str, list[tuple[str, int]]] = {name: [] for name in names}
    for tar, key, offset in rows:
        indexed[names[tar]].append((key, offset))
    return [
        f"Energon's index of {name} does not fit the shard; {again}"
        for name in names
        if indexed[name] != found[name]
    ]
