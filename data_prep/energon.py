"""Prepare shards for Energon without questions, and blend prepared folders with weights."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import yaml
from braceexpand import braceexpand

from data_prep.durable import write_durably
from data_prep.indexing import read_damage, unread_ends
from data_prep.manifest import load_manifest
from data_prep.shards import check_shards, shard_names
from data_prep.workspace import Workspace, WorkspaceError

PARTS = ("train", "val", "test")
#: Energon's marker of a prepared folder.
INFO = Path(".nv-meta") / ".info.json"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a folder was prepared as."""

    shards: dict[str, int]  #: number of shards by part
    samples: int
    again: bool  #: False: it was prepared like this already
    damage: dict[str, list[str]]  #: damaged places by shard; what is sound around them is used


def parse_split(text: str) -> tuple[float, float, float]:
    """Read a ratio such as ``8,1,1``: train, val, test."""
    try:
        ratio = tuple(float(part) for part in text.split(","))
    except ValueError:
        ratio = ()
    if len(ratio) != 3 or min(ratio) < 0 or not ratio[0] > 0:
        raise WorkspaceError(
            f"--split is {text!r}; expected train,val,test as in 8,1,1 (val and test may be 0)"
        )
    return ratio  # type: ignore[return-value]


def split_counts(num_shards: int, ratio: tuple[float, ...]) -> dict[str, int]:
    """Shards of each part as Energon 7.4.1 divides them.

    The float arithmetic is that of ``WebdatasetPreparator.prepare_dataset``, rounding included.
    """
    total, done, share_so_far = sum(ratio), 0, 0.0
    counts = {}
    for part, share in zip(PARTS, ratio, strict=True):
        share_so_far += share / total
        end = int(num_shards * share_so_far)
        counts[part] = end - done
        done = end
    return counts


def shards_needed(ratio: tuple[float, ...]) -> int:
    """Smallest number of shards that leaves no part with a ratio above 0 empty."""
    num_shards = 1
    while not _fills_all_parts(num_shards, ratio):
        num_shards += 1
    return num_shards


def prepare(root: Path, split: str, *, num_workers: int) -> Prepared:
    """Run ``energon prepare`` on the shards in ``root`` and record its media metadata.

    A folder that was prepared like this from the same shards is left as it is. Raises
    WorkspaceError where a part would be empty or Energon fails.
    """
    workspace = Workspace(root)
    ratio = parse_split(split)
    names = shard_names(root)
    if not names:
        raise WorkspaceError(
            f"{root} holds no shards; make them with `python -m data_prep cambrian`"
        )
    if not _fills_all_parts(len(names), ratio):
        raise WorkspaceError(
            f"{len(names)} shards at {split} leave a part empty "
            f"({describe(split_counts(len(names), ratio))}); "
            f"at least {shards_needed(ratio)} are needed: make smaller ones with --shard-size"
        )
    check_shards(root, names)
    mark = orjson.dumps(
        {
            "split": ratio,
            "shards": _shard_identity(workspace, names),
            "energon": version("megatron-energon"),
        }
    )
    mark_path = workspace.state / "prepared.json"
    result = split_counts(len(names), ratio)
    is_marked = mark_path.exists() and mark_path.read_bytes() == mark
    if is_marked and (root / INFO).exists() and not unread_ends(root, names):
        return Prepared(shards=result, samples=_indexed(root), again=False, damage={})
    damage = _run_energon(root, split, num_workers)
    workspace.state.mkdir(exist_ok=True)
    if damage:
        # the next time reads the shards again, and says so again
        mark_path.unlink(missing_ok=True)
    else:
        write_durably(mark_path, mark)
    return Prepared(shards=result, samples=_indexed(root), again=True, damage=damage)


def _indexed(root: Path) -> int:
    return sum(json.loads((root / INFO).read_text())["shard_counts"].values())


def describe(counts: dict[str, int]) -> str:
    """Counts by part as one line."""
    return ", ".join(f"{part} {count}" for part, count in counts.items())


def _run_energon(root: Path, split: str, num_workers: int) -> dict[str, list[str]]:
    """Damaged places by shard."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as damage:
        command = [
            *(sys.executable, "-m", "data_prep.indexing", damage.name),
            *("prepare", str(root), "--non-interactive", "--force-overwrite"),
            *("--split-ratio", split, "--sample-type", "CrudeWebdataset"),
            *("--media-metadata-by-extension", "--num-workers", str(num_workers)),
        ]
        finished = subprocess.run(command, capture_output=True, text=True)
        found = read_damage(root, Path(damage.name))
    output = finished.stdout + finished.stderr
    # Energon reports some failures, such as duplicate keys or a broken shard, with status 0
    if finished.returncode or not output.rstrip().endswith("Done") or "Traceback" in output:
        raise WorkspaceError(f"energon prepare failed on {root}:\n{output.strip()}")
    return found


def _fills_all_parts(num_shards: int, ratio: tuple[float, ...]) -> bool:
    counts = split_counts(num_shards, ratio)
    return all(counts[part] or not share for part, share in zip(PARTS, ratio, strict=True))


def _shard_identity(workspace: Workspace, names: list[str]) -> list[list[str | int]]:
    """Names with hashes where the manifest has them, else with size and time."""
    try:
        hashes = {shard["name"]: shard["sha256"] for shard in load_manifest(workspace)["shards"]}
    except FileNotFoundError:
        hashes = {}
    identity: list[list[str | int]] = []
    for name in names:
        stat = (workspace.root / name).stat()
        identity.append([name, hashes.get(name, ""), stat.st_size, stat.st_mtime_ns])
    return identity


@dataclass(frozen=True, kw_only=True)
class BlendMember:
    """A prepared folder in a blend."""

    root: Path
    weight: float | None  #: None: the number of its training samples


@dataclass(frozen=True, kw_only=True)
class BlendShare:
    """What a folder gives to a blend."""

    root: Path
    samples: dict[str, int]  #: by part
    weight: float
    share: float  #: of the training samples that a run sees, 0…1


def parse_member(text: str) -> BlendMember:
    """Read ``FOLDER`` or ``FOLDER=WEIGHT``."""
    path, equals, weight = text.rpartition("=")
    if not equals:
        return BlendMember(root=Path(text), weight=None)
    try:
        number = float(weight)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise WorkspaceError(f"the weight in {text!r} is {weight!r}; expected a number above 0")
    return BlendMember(root=Path(path), weight=number)


def blend(target: Path, members: list[BlendMember]) -> list[BlendShare]:
    """Write a metadataset (Energon's ``MetadatasetV2``) that draws from all members.

    With weights, training draws from each member in that proportion; without any, every training
    sample is equally likely. Validation and test hold the samples of all members that have such a
    part. Paths in the file are relative to it. Raises WorkspaceError where a folder is not
    prepared, named twice, or weights are mixed with none.
    """
    if target.suffix not in (".yaml", ".yml"):
        raise WorkspaceError(f"{target} is no .yaml file; Energon knows a metadataset by that")
    given = [member.weight is not None for member in members]
    if any(given) and not all(given):
        raise WorkspaceError("some folders have weights and some have none; give all or none")
    roots = [member.root.resolve() for member in members]
    if len(set(roots)) != len(roots):
        raise WorkspaceError("a folder is named twice; give it once, with the sum of the weights")
    samples = [_count_samples(member.root) for member in members]
    weights = [
        member.weight if member.weight is not None else float(counts["train"])
        for member, counts in zip(members, samples, strict=True)
    ]
    folder = target.resolve().parent
    splits: dict[str, Any] = {}
    for part in PARTS:
        entries = [
            {"weight": weight, "path": os.path.relpath(root, folder), "split_part": part}
            for root, weight, counts in zip(roots, weights, samples, strict=True)
            if counts[part]
        ]
        if entries:
            splits[part] = {"blend": entries}
    document = {"__module__": "megatron.energon", "__class__": "MetadatasetV2", "splits": splits}
    write_durably(target, yaml.safe_dump(document, sort_keys=False).encode())
    return [
        BlendShare(root=root, samples=counts, weight=weight, share=weight / sum(weights))
        for root, counts, weight in zip(roots, samples, weights, strict=True)
    ]


def _count_samples(root: Path) -> dict[str, int]:
    split_path = root / ".nv-meta" / "split.yaml"
    if not (root / INFO).exists() or not split_path.exists():
        raise WorkspaceError(
            f"{root} is not prepared; run `python -m data_prep prepare {root} --split 8,1,1` first"
        )
    counts = json.loads((root / INFO).read_text())["shard_counts"]
    shards = yaml.safe_load(split_path.read_text())["split_parts"]
    samples = {
        part: sum(counts[name] for pattern in shards.get(part, []) for name in braceexpand(pattern))
        for part in PARTS
    }
    if not samples["train"]:
        raise WorkspaceError(f"{root} has no training shards; prepare it with another --split")
    return samples
