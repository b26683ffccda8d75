"""Blend prepared folders with weights, as a metadataset that Energon reads."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_prep.durable import write_durably
from data_prep.prepared import PARTS, check_prepared, read_index
from data_prep.workspace import WorkspaceError


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
    for member in members:
        _check_kind(member.root)
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


def _check_kind(root: Path) -> None:
    """Is it a folder? What else training reads by itself has no parts to blend."""
    if root.is_dir():
        return
    if not root.exists():
        raise WorkspaceError(f"{root} does not exist; give folders that `prepare` was run on")
    mend = (
        "give the folders that it names"
        if root.suffix in (".yaml", ".yml")
        else (
            f"write shards with `python -m data_prep convert {root} --output-dir W`, prepare W, "
            "and blend that"
        )
    )
    raise WorkspaceError(f"{root} is a file, and a blend is of folders of shards: {mend}")


def _count_samples(root: Path) -> dict[str, int]:
    check_prepared(root)
    index = read_index(root)
    samples = {
        part: sum(index.counts.get(name, 0) for name in index.parts.get(part, ())) for part in PARTS
    }
    if not samples["train"]:
        raise WorkspaceError(f"{root} has no training shards; prepare it with another --split")
    return samples
