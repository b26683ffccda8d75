"""Prepare shards for Energon without questions."""

import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import yaml

from data_prep.durable import write_durably
from data_prep.manifest import check_closed
from data_prep.prepared import (
    DATABASE,
    INFO,
    META,
    PARTS,
    SPLITS,
    Splits,
    check_prepared,
    read_index,
    read_splits,
)
from data_prep.shards import iter_samples
from data_prep.workspace import Workspace, WorkspaceError, listed, read_json

#: Where Energon writes the split that it makes, which then takes the place of `split.yaml`.
_MADE_SPLIT = "split.made.yaml"
#: Samples are read as they are; `dct_vl` cooks them.
_DATASET = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a folder was prepared as."""

    shards: dict[str, int]  #: number of shards by part
    again: bool  #: False: it was prepared like this already
    kept_split: bool  #: the parts are those of a `split.yaml` that was written by hand
    unused: int  #: shards that such a split names nowhere


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


def prepare(
    root: Path, split: str | None, *, num_workers: int, replace_split: bool = False
) -> Prepared:
    """Index the shards in ``root`` as ``energon prepare`` does, media metadata included.

    A folder that was prepared like this from the same shards is left as it is; what a killed
    attempt left is made anew.

    Args:
        split: ratio of train,val,test; None: that of a split that is there, else what fits.
        replace_split: also where ``split.yaml`` was written by hand.

    Raises:
        WorkspaceError: the conversion is not finished, a part would be empty, a split that was
            written by hand would be lost, or Energon fails.
    """
    workspace = Workspace(root)
    names = sorted(path.name for path in root.glob("*.tar"))
    if not names:
        raise WorkspaceError(
            f"{root} holds no shards; make them with `python -m data_prep cambrian`"
        )
    with workspace.locked():
        manifest = check_closed(workspace)
        hashes = {shard["name"]: shard["sha256"] for shard in (manifest or {}).get("shards", [])}
        mark_path = workspace.state / "prepared.json"
        before = _read_mark(mark_path)
        kept = None if replace_split else _split_by_hand(root, before)
        if kept is not None and split is not None:
            raise WorkspaceError(
                f"{root / SPLITS[0]} is not as a former --split made it: leave --split out to "
                "keep it, or add --replace-split to divide the shards anew"
            )
        ratio = None if kept is not None else _choose_ratio(split, before, len(names))
        if kept is not None:
            _check_kept(root, kept, names, before)
        mark = {
            "split": ratio and list(ratio),
            "shards": _shard_identity(root, names, hashes),
            "energon": version("megatron-energon"),
        }
        again = mark != before or not _is_whole(root)
        if again:
            mark_path.unlink(missing_ok=True)
            _remove_index(root, keep_split=kept is not None)
            _run_energon(root, names, ratio, num_workers)
            made = root / META / _MADE_SPLIT
            if ratio is not None:
                write_durably(root / SPLITS[0], made.read_bytes())
            made.unlink()
            dataset = yaml.safe_dump(_DATASET, sort_keys=False).encode()
            write_durably(root / META / "dataset.yaml", dataset)
            write_durably(mark_path, orjson.dumps(mark))
        index = read_index(root)
        return Prepared(
            shards={part: len(shards) for part, shards in index.parts.items()},
            again=again,
            kept_split=kept is not None,
            unused=0 if kept is None else len(set(names) - index.named),
        )


def describe(counts: dict[str, int]) -> str:
    """Counts by part as one line."""
    return ", ".join(f"{part} {count}" for part, count in counts.items())


def _read_mark(path: Path) -> dict[str, Any]:
    """What the folder was prepared from; {} where that is not known."""
    try:
        found = read_json(path)
    except (FileNotFoundError, WorkspaceError):
        return {}
    known = isinstance(found, dict) and found.keys() == {"split", "shards", "energon"}
    return found if known else {}


def _split_by_hand(root: Path, before: dict[str, Any]) -> Splits | None:
    """The parts of the folder where nobody can make them again from a ratio, else None."""
    found = read_splits(root)
    if found is None or not before or before["split"] is None:
        return found
    names = [shard[0] for shard in before["shards"]]
    counts = split_counts(len(names), tuple(before["split"]))
    made, start = {}, 0
    for part, count in counts.items():
        made[part] = tuple(names[start : start + count])
        start += count
    return None if found == Splits(parts=made, excluded=frozenset()) else found


def _check_kept(root: Path, kept: Splits, names: list[str], before: dict[str, Any]) -> None:
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


def _choose_ratio(
    split: str | None, before: dict[str, Any], num_shards: int
) -> tuple[float, float, float]:
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


def _is_whole(root: Path) -> bool:
    try:
        check_prepared(root)
    except WorkspaceError:
        return False
    return True


def _remove_index(root: Path, *, keep_split: bool) -> None:
    """Remove what Energon wrote, its marker first: until all is made anew, nothing is prepared."""
    made = [INFO, INFO.with_suffix(".yaml"), META / "index.uuid", META / _MADE_SPLIT]
    made += [] if keep_split else SPLITS
    for name in made:
        (root / name).unlink(missing_ok=True)
    for pattern in (f"{DATABASE}*", "*.idx.tmp"):
        for leftover in root.glob(pattern):
            leftover.unlink()


def _fills_all_parts(num_shards: int, ratio: tuple[float, ...]) -> bool:
    counts = split_counts(num_shards, ratio)
    return all(counts[part] or not share for part, share in zip(PARTS, ratio, strict=True))


def _shard_identity(root: Path, names: list[str], hashes: dict[str, str]) -> list[list[str | int]]:
    """Names with hashes where the manifest has them, and size and time."""
    identity: list[list[str | int]] = []
    for name in names:
        stat = (root / name).stat()
        identity.append([name, hashes.get(name, ""), stat.st_size, stat.st_mtime_ns])
    return identity


def _run_energon(
    root: Path, names: list[str], ratio: tuple[float, ...] | None, num_workers: int
) -> None:
    """Energon forks and prints; it does so in a process that ends with this one."""
    order = {"root": str(root), "names": names, "ratio": ratio, "num_workers": num_workers}
    reader, writer = os.pipe()
    try:
        finished = subprocess.run(
            [sys.executable, "-c", f"from data_prep import energon; energon.index({reader})"],
            input=orjson.dumps(order),
            capture_output=True,
            pass_fds=(reader,),
        )
    finally:
        os.close(reader)
        os.close(writer)
    if finished.returncode:
        output = (finished.stdout + finished.stderr).decode("utf-8", "replace")
        raise WorkspaceError(f"{root} cannot be prepared: {_explain(root, names, output)}")


def index(parents_pipe: int) -> None:
    """Run Energon's indexing as standard input orders it; only in a process of its own.

    ``parents_pipe`` ends with the process that gave the order. A killed one cannot stop this one
    and its workers, and they would go on writing.
    """
    order = orjson.loads(sys.stdin.buffer.read())
    os.register_at_fork(after_in_child=lambda: _end_with(parents_pipe))
    _end_with(parents_pipe)
    # torch comes along
    from megatron.energon.flavors import BaseWebdatasetFactory
    from megatron.energon.media.extractor import MediaFilterConfig

    ratio = order["ratio"] or [1, 0, 0]
    BaseWebdatasetFactory.prepare_dataset(
        Path(order["root"]),
        order["names"],
        split_parts_ratio=list(zip(PARTS, ratio, strict=True)),
        split_config=_MADE_SPLIT,
        shuffle_seed=None,
        workers=order["num_workers"],
        media_filter=MediaFilterConfig.parse(glob=None, header=False, extension=True),
    )


def _end_with(pipe: int) -> None:
    def wait() -> None:
        os.read(pipe, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _explain(root: Path, names: list[str], output: str) -> str:
    """Why Energon failed, in one line, with advice that leaves the shards as they are."""
    twice = re.search(r'Example duplicate key: "(.*)"', output)
    if twice:
        found = [name for name in names for key in _keys(root / name) if key == twice[1]]
        return (
            f"the key {twice[1]} is there more than once (in {listed(found)}), and Energon needs "
            "keys that are unique in a folder; give each set of shards a folder of its own, "
            "prepare both, and combine them with `python -m data_prep blend`"
        )
    # the name, and the last line of the stack below it
    broken = re.findall(
        r"Shard failed to load: '(.*?)'.*?^(\w[\w.]*(?:Error|Exception)\b.*?)$",
        output,
        re.DOTALL | re.MULTILINE,
    )
    if broken:
        shown = "; ".join(f"{name} ({cause})" for name, cause in dict(broken).items())
        return f"{shown}; fetch or make it again, or move it away"
    empty = re.search(r"AssertionError: Shard (.*) has no samples", output)
    if empty:
        return f"{empty[1]} holds no sample; move it away"
    return output.strip().rpartition("\n")[2] or "Energon was killed (for memory, perhaps)"


def _keys(shard: Path) -> list[str]:
    with shard.open("rb") as file:
        return [sample.key for sample in iter_samples(file)]
