"""Samples picked for people to look at."""

import random
from dataclasses import dataclass
from pathlib import Path

from data_prep.schema import ChatRecord, image_parts, json_part, parse_record
from data_prep.shards import iter_samples, shard_paths
from data_prep.workspace import WorkspaceError


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A sample with the bytes of its images."""

    key: str
    shard: str
    record: ChatRecord
    images: tuple[bytes, ...]


def pick_samples(root: Path, count: int, *, seed: int) -> list[Shown]:
    """About ``count`` samples, from as many shards as possible; the same for the same seed."""
    paths = shard_paths(root)
    if not paths:
        raise WorkspaceError(f"{root} holds no shards (*.tar)")
    rng = random.Random(seed)
    chosen = sorted(rng.sample(paths, min(count, len(paths))))
    shown: list[Shown] = []
    for position, path in enumerate(chosen):
        wanted = count * (position + 1) // len(chosen) - count * position // len(chosen)
        shown += _pick_in_shard(path, wanted, rng)
    return shown


def _pick_in_shard(path: Path, count: int, rng: random.Random) -> list[Shown]:
    with path.open("rb") as shard:
        samples = list(iter_samples(shard))
        picked = sorted(rng.sample(range(len(samples)), min(count, len(samples))))
        return [
            Shown(
                key=sample.key,
                shard=path.name,
                record=parse_record(sample.parts[json_part(sample.parts)].read(shard)),
                images=tuple(sample.parts[p].read(shard) for p in image_parts(sample.parts)),
            )
            for sample in (samples[i] for i in picked)
        ]
