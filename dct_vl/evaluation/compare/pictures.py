"""The pictures that questions are about, from the runs' shards or from a benchmark's data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dct_vl.evaluation.compare.runs import ComparedRun
from dct_vl.inputs.held_out import HeldOut, read_split
from dct_vl.inputs.shard_index import keys_by_split


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked about."""

    #: encoded
    images: tuple[bytes, ...]
    question: str
    truth: str


def from_shards(runs: Sequence[ComparedRun], keys: set[str]) -> dict[str, Asked]:
    """Samples by key, from the shards of the first run that still has them."""
    found: dict[str, Asked] = {}
    for path in dict.fromkeys(run.config.data.path for run in runs):
        for split, members in (keys_by_split(path) or {}).items():
            missing = (keys & members) - found.keys()
            if missing:
                found |= {sample.key: _asked(sample) for sample in _read(path, split, missing)}
    return found


def from_task(name: str, path: Path, keys: set[str]) -> dict[str, Asked]:
    """Items of a benchmark by key; those whose pictures cannot be read are left out.

    Raises:
        ValueError: no such task, or the data is not there or not the task's.
    """
    from dct_vl.evaluation.tasks.registry import find_task
    from dct_vl.evaluation.tasks.task import ReadOptions

    task = find_task(name)
    if not path.exists():
        raise ValueError(f"{path} does not exist; {task.name} reads {task.layout}")
    found: dict[str, Asked] = {}
    for item in task.read(path, ReadOptions()):
        if item.key not in keys:
            continue
        try:
            images = item.image_bytes()
        except OSError:
            continue
        found[item.key] = Asked(
            images=images, question=item.question, truth=" | ".join(item.references)
        )
        if len(found) == len(keys):
            break
    return found


def _read(path: str, split: str, wanted: set[str]) -> Iterator[HeldOut]:
    left = set(wanted)
    # a sample that does not follow the schema has no picture to show
    for sample in read_split(path, split, on_fault=lambda key, error: left.discard(key)):
        if sample.key in left:
            left.remove(sample.key)
            yield sample
        if not left:
            return


def _asked(sample: HeldOut) -> Asked:
    turns = sample.record.turns
    asked = [turn.text.replace("<image>", "").strip() for turn in turns if turn.role == "user"]
    told = [turn.text for turn in turns if turn.role == "assistant"]
    return Asked(images=sample.images, question=" / ".join(asked), truth=" / ".join(told))
