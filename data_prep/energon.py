"""Prepare shards for Energon without questions."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import orjson
import yaml

from data_prep.durable import PARTIAL_SUFFIX, write_durably
from data_prep.indexing import MADE_SPLIT, read_damage, unread_ends
from data_prep.manifest import check_closed
from data_prep.prepared import DATABASE, INFO, META, SPLITS, check_prepared, read_index, read_mark
from data_prep.remote import explained, is_remote
from data_prep.shards import Looked, check_shards, iter_samples, look_at_first, shard_names
from data_prep.split import check_kept, choose_ratio, split_by_hand
from data_prep.workspace import Workspace, WorkspaceError, listed

#: Samples are read as they are; `dct_vl` cooks them.
_DATASET = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a folder was prepared as."""

    shards: dict[str, int]  #: number of shards by part
    samples: int
    again: bool  #: False: it was prepared like this already
    damage: dict[str, list[str]]  #: damaged places by shard; what is sound around them is used
    kept_split: bool  #: the parts are those of a `split.yaml` that was written by hand
    unused: int  #: shards that such a split names nowhere
    first: tuple[Looked, ...]  #: the first samples to train on


def prepare(
    root: Path,
    split: str | None,
    *,
    num_workers: int,
    replace_split: bool = False,
    on_begin: Callable[[int], None] = lambda num_shards: None,
) -> Prepared:
    """Index the shards in ``root`` as ``energon prepare`` does, media metadata included.

    A folder that was prepared like this from the same shards is left as it is; what a killed
    attempt left is made anew.

    Args:
        split: ratio of train,val,test; None: that of a split that is there, else what fits.
        replace_split: also where ``split.yaml`` was written by hand.
        on_begin: called with the number of shards before they are indexed.

    Raises:
        WorkspaceError: the conversion is not finished, a part would be empty, a split that was
            written by hand would be lost, or Energon fails.
    """
    workspace = Workspace(root)
    names = shard_names(root)
    if not names:
        with explained(root):
            emptied = root.is_dir() and check_closed(workspace)
        why = f": of {emptied['entries']} entries none was kept" if emptied else ""
        raise WorkspaceError(
            f"{root} holds no shards{why}; make them with `python -m data_prep convert`"
        )
    with explained(root), workspace.locked():
        manifest = check_closed(workspace)
        hashes = {shard["name"]: shard["sha256"] for shard in (manifest or {}).get("shards", [])}
        before = read_mark(workspace)
        kept = None if replace_split else split_by_hand(root, before, names, split)
        if kept is not None and split is not None:
            raise WorkspaceError(
                f"{root / SPLITS[0]} is not as a former --split made it: leave --split out to "
                "keep it, or add --replace-split to divide the shards anew"
            )
        ratio = None if kept is not None else choose_ratio(split, before, len(names))
        if kept is not None:
            check_kept(root, kept, names, before)
        check_shards(root, names)
        mark = {
            "split": ratio and list(ratio),
            "shards": _shard_identity(root, names, hashes),
            "energon": version("megatron-energon"),
        }
        again = any(before.get(key) != mark[key] for key in mark) or not _is_whole(root, names)
        damage = {} if again else before.get("damage", {})
        if again:
            workspace.prepared.unlink(missing_ok=True)
            _remove_index(root, keep_split=kept is not None)
            on_begin(len(names))
            damage = _run_energon(root, names, ratio, num_workers)
            made = root / META / MADE_SPLIT
            if ratio is not None:
                write_durably(root / SPLITS[0], made.read_bytes())
            made.unlink()
            _write_dataset(root)
            write_durably(workspace.prepared, orjson.dumps({**mark, "damage": damage}))
        else:
            _write_dataset(root)
        index = read_index(root)
        return Prepared(
            shards={part: len(shards) for part, shards in index.parts.items()},
            samples=sum(index.counts.values()),
            again=again,
            damage=damage,
            kept_split=kept is not None,
            unused=0 if kept is None else len(set(names) - index.named),
            first=tuple(look_at_first(root, index.parts.get("train", ()), index.excluded)),
        )


def _is_whole(root: Path, names: list[str]) -> bool:
    try:
        check_prepared(root)
    except WorkspaceError:
        return False
    return not unread_ends(root, names)


def _write_dataset(root: Path) -> None:
    """Say how samples are read, unless a file does that says more and means the same."""
    path = root / META / "dataset.yaml"
    try:
        found = yaml.safe_load(path.read_bytes())
    except (FileNotFoundError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict) or found.get("__class__") != _DATASET["__class__"]:
        write_durably(path, yaml.safe_dump(_DATASET, sort_keys=False).encode())


def _remove_index(root: Path, *, keep_split: bool) -> None:
    """Remove what Energon wrote, its marker first: until all is made anew, nothing is prepared."""
    made = [INFO, INFO.with_suffix(".yaml"), META / "index.uuid", META / MADE_SPLIT]
    made += [] if keep_split else SPLITS
    for name in made:
        (root / name).unlink(missing_ok=True)
    for pattern in (f"{DATABASE}*", "*.idx.tmp", f"{META}/*{PARTIAL_SUFFIX}"):
        for leftover in root.glob(pattern):
            leftover.unlink()


def _shard_identity(root: Path, names: list[str], hashes: dict[str, str]) -> list[list[str | int]]:
    """Names with hashes where the manifest has them, and size and time."""
    identity: list[list[str | int]] = []
    if is_remote(root) and hashes.keys() >= set(names):
        return [[name, hashes[name]] for name in names]  # each size would be a request
    for name in names:
        stat = (root / name).stat()
        identity.append([name, hashes.get(name, ""), stat.st_size, stat.st_mtime_ns])
    return identity


def _run_energon(
    root: Path, names: list[str], ratio: tuple[float, ...] | None, num_workers: int
) -> dict[str, list[str]]:
    """Damaged places by shard. Energon forks and prints: it runs in a process of its own."""
    order = {"root": str(root), "names": names, "ratio": ratio, "num_workers": num_workers}
    reader, writer = os.pipe()
    try:
        with tempfile.NamedTemporaryFile(suffix=".jsonl") as damage:
            finished = subprocess.run(
                [sys.executable, "-m", "data_prep.indexing", damage.name, str(reader)],
                input=orjson.dumps(order),
                capture_output=True,
                pass_fds=(reader,),
            )
            found = read_damage(root, Path(damage.name))
    finally:
        os.close(reader)
        os.close(writer)
    if finished.returncode:
        output = (finished.stdout + finished.stderr).decode("utf-8", "replace")
        raise WorkspaceError(f"{root} cannot be prepared: {_explain(root, names, output)}")
    return found


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
