"""How the shards of a folder are divided into train, val and test, by a ratio or by hand."""

from pathlib import Path
from typing import Any

from data_prep.prepared import PARTS, SPLITS, Splits, read_index, read_splits
from data_prep.workspace import WorkspaceError, listed


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


def suggested_split(num_shards: int) -> str:
    """8,1,1 where there are shards enough for it, else as many parts as can be filled."""
    few = {1: "1,0,0", 2: "1,1,0"}.get(num_shards, f"{num_shards - 2},1,1")
    return "8,1,1" if _fills_all_parts(num_shards, (8, 1, 1)) else few


def describe(counts: dict[str, int]) -> str:
    """Counts by part as one line."""
    return ", ".join(f"{part} {count}" for part, count in counts.items())


def split_by_hand(
    root: Path, before: dict[str, Any], names: list[str], split: str | None
) -> Splits | None:
    """The parts of a folder, unless they are what a ratio made and can make again.

    Args:
        before: what `prepare` noted of the last time; {} where it did not run here.
        names: the shards that are there.
        split: the ratio that is asked for.
    """
    found = read_splits(root)
    made = [_divide(names, parse_split(split))] if split is not None else []
    if before.get("split"):
        made.append(_divide([shard[0] for shard in before["shards"]], tuple(before["split"])))
    return None if found in made else found


def _divide(names: list[str], ratio: tuple[float, ...]) -> Splits:
    parts, start = {}, 0
    for part, count in split_counts(len(names), ratio).items():
        parts[part] = tuple(names[start : start + count])
        start += count
    return Splits(parts=parts, excluded=frozenset())


def check_kept(root: Path, kept: Splits, names: list[str], before: dict[str, Any]) -> None:
    """A split that was written by hand has to name shards that are there, and know of new ones."""
    lost = sorted(set().union(*kept.parts.values()) - set(names))
    if lost:
        raise WorkspaceError(
            f"{root / SPLITS[0]} names shards that are not there ({listed(lost)}): mend it, or "
            "divide the shards anew with --replace-split"
        )
    try:
        known = set(read_index(root).counts)
    except WorkspaceError:
        known = {shard[0] for shard in before.get("shards", [])}
    new = sorted(set(names) - known - kept.named)
    if new:
        raise WorkspaceError(
            f"{root / SPLITS[0]} does not know {len(new)} new shards ({listed(new)}): add them to "
            "a part or to `exclude`, or divide all shards anew with --replace-split"
        )


def choose_ratio(
    split: str | None, before: dict[str, Any], num_shards: int
) -> tuple[float, float, float]:
    """The ratio asked for; None: the former one, or what fits.

    Raises WorkspaceError where a part of the ratio would be empty.
    """
    if split is None:
        former = tuple(before.get("split") or ())
        if former and _fills_all_parts(num_shards, former):
            return former  # type: ignore[return-value]
        return parse_split(suggested_split(num_shards))
    ratio = parse_split(split)
    if not _fills_all_parts(num_shards, ratio):
        raise WorkspaceError(
            f"{num_shards} shards at {split} leave a part empty "
            f"({describe(split_counts(num_shards, ratio))}); at least {shards_needed(ratio)} are "
            f"needed: make smaller ones with --shard-size, or take "
            f"--split {suggested_split(num_shards)}"
        )
    return ratio


def _fills_all_parts(num_shards: int, ratio: tuple[float, ...]) -> bool:
    counts = split_counts(num_shards, ratio)
    return all(counts[part] or not share for part, share in zip(PARTS, ratio, strict=True))
