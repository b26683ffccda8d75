"""Checks of a run's data, made before anything heavy starts: found at step 500, they cost hours."""

from __future__ import annotations

import os
import tarfile
from itertools import islice
from pathlib import Path

import yaml

from data_prep.indexing import unread_ends
from data_prep.prepared import check_prepared, read_splits
from data_prep.remote import explained, folder_at, is_remote, readable, sizes
from data_prep.schema import SchemaError, parse_record
from data_prep.shards import FIRST, look_at_first
from data_prep.workspace import WorkspaceError, listed
from dct_vl.errors import ConfigError
from dct_vl.inputs.jsonl import indexed, is_jsonl, num_entries, read_chats
from dct_vl.inputs.shard_index import used_shards
from dct_vl.runs.config.schema import RunConfig
from dct_vl.runs.derived import RunSettings

#: the class of Energon's in dataset.yaml that gives samples as they lie in their shard
_CRUDE = "CrudeWebdataset"
#: members of a shard that are looked at for a conversation
_LOOKED_AT = 20


def check_data_path(path: str) -> None:
    """A ConfigError unless it is a folder that Energon has prepared for conversations, a
    metadataset of such, or a JSONL file.
    """
    try:
        where = folder_at(path)
        with explained(where):
            is_there = where.exists()
    except WorkspaceError as error:
        raise ConfigError(f"DATA_PATH: {error}") from error
    if not is_there:
        raise ConfigError(
            f"DATA_PATH={path} does not exist: make the shards with `python -m data_prep cambrian "
            f"--data-dir D --output-dir {path}`"
        )
    if is_jsonl(path) and where.is_file():
        if is_remote(where):
            raise ConfigError(
                f"DATA_PATH={path}: a JSONL file is read with its media from a disk; write shards "
                "with `python -m data_prep convert x.jsonl --output-dir s3://…`"
            )
        _check_lines(where)
        return
    if where.is_file() and where.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"DATA_PATH={path} is a file: expected the folder of the shards, a metadataset YAML, "
            "or a .jsonl file of conversations"
        )
    try:
        check_prepared(where)
    except WorkspaceError as error:
        raise ConfigError(f"DATA_PATH={path}: {readable(str(error))}") from error
    if where.is_file():
        _check_blend(where)
    else:
        _check_folder(path, where)


def _check_blend(path: Path) -> None:
    """Every folder of a metadataset."""
    # takes seconds to import
    from megatron.energon.metadataset.loader import traverse_metadataset

    try:
        found = traverse_metadataset(path, split_part="train")
    except NotImplementedError:
        return  # of joined sets, and of Energon's first version
    except Exception as error:  # whatever its parser meets
        raise ConfigError(
            f"DATA_PATH={path} is no metadataset of Energon ({type(error).__name__}: {error}); "
            "`python -m data_prep blend` writes one"
        ) from error
    for one in found:
        where = folder_at(str(one.path))
        if where.is_dir():
            _check_folder(str(one.path), where)
        else:
            check_data_path(str(one.path))


def _check_folder(path: str, where: Path) -> None:
    """Are the shards there that the splits name, to their ends, and of conversations?"""
    used = used_shards(where)
    there = set(sizes(where) if is_remote(where) else os.listdir(where))
    gone = [n for n in used if n not in there and not (where / n).is_file()]
    if gone:
        raise ConfigError(
            f"DATA_PATH={path} lacks {len(gone)} of the shards that its splits name: "
            f"{listed(gone)}; copy them again, or run `python -m data_prep prepare {path}` anew"
        )
    if short := unread_ends(where, used):
        raise ConfigError(
            f"DATA_PATH={path}: Energon's index of {len(short)} shards ends before they do "
            f"({listed(short)}), and what is behind would never be read: run `python -m data_prep "
            f"prepare {path}`, which reads on and names what is damaged"
        )
    if (where / ".nv-meta" / "dataset.yaml").is_file():
        _check_sample_type(where)
    _check_first_samples(path, where)


def _check_first_samples(path: str, where: Path) -> None:
    """Can one of the first samples be used? Of a whole set that cannot, a run would end after its
    first hundred rejects.
    """
    splits = read_splits(where)
    if splits is None:
        return
    names = splits.parts.get("train") or used_shards(where)
    faulty = []
    for one in look_at_first(where, names, splits.excluded):
        if not one.fault:
            return
        faulty.append(one)
    if faulty:
        raise ConfigError(
            f"DATA_PATH={path}: training can use none of the first {len(faulty)} samples; "
            f"{faulty[0].key} of {faulty[0].shard}: {faulty[0].fault}. `python -m data_prep stats "
            f"{path}` counts such samples; convert the source anew, or pack its parts under names "
            "that are known"
        )


def _check_lines(path: Path) -> None:
    try:
        count = num_entries(indexed(path))
    except OSError as error:
        raise ConfigError(f"DATA_PATH={path} cannot be indexed: {error}") from error
    if not count:
        raise ConfigError(f"DATA_PATH={path} holds no entry: expected a conversation a line")
    faults = []
    for chat in islice(read_chats(path), FIRST):
        if not chat.fault:
            return
        faults.append(chat.fault)
    raise ConfigError(
        f"DATA_PATH={path}: training can use none of its first {len(faults)} entries; "
        f"{faults[0]}. Correct the lines: `python -m data_prep convert {path} --output-dir W "
        "--check` names the fault of each"
    )


def _check_sample_type(folder: Path) -> None:
    """Shards that were prepared for another task give samples that are no conversations."""
    file = folder / ".nv-meta" / "dataset.yaml"
    try:
        described = yaml.safe_load(file.read_bytes())
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} cannot be read ({error}); {_prepare(folder)}") from error
    described = described if isinstance(described, dict) else {}
    name = described.get("__class__") or (described.get("sample_type") or {}).get("__class__")
    if name == _CRUDE:
        return
    fix = (
        _prepare(folder)
        if _holds_conversations(folder)
        else f"write shards of conversations with `python -m data_prep convert {folder} "
        "--output-dir W`, then `python -m data_prep prepare W`"
    )
    raise ConfigError(
        f"{file} describes the samples of DATA_PATH={folder} as {name}; expected {_CRUDE}, whose "
        f"JSON holds a conversation: {fix}"
    )


def _prepare(folder: Path) -> str:
    return f"run `python -m data_prep prepare {folder}` anew"


def _holds_conversations(folder: Path) -> bool:
    for name in used_shards(folder)[:1]:
        try:
            with (folder / name).open("rb") as shard, tarfile.open(fileobj=shard) as tar:
                for member in islice(tar, _LOOKED_AT):
                    file = tar.extractfile(member) if member.name.endswith("json") else None
                    if file is not None:
                        return bool(parse_record(file.read()).turns)
        except (OSError, tarfile.TarError, SchemaError):
            return False
    return False


def check_splits(run: RunConfig, data_parallel_size: int = 1) -> None:
    """Is there a sample to train on, and has every data-parallel rank a micro batch to validate on,
    where the run validates at all?

    Raises:
        ConfigError: there is not, with the numbers and the fix.
    """
    # megatron.energon takes seconds to import
    from dct_vl.inputs.data_sets import num_samples

    trainer, path = run.trainer, run.data.path
    if not num_samples(path, "train"):
        raise ConfigError(
            f"the train split of {path} has no sample: run `python -m data_prep prepare {path} "
            "--split 8,1,1`, with as many shards as fill its parts"
        )
    if not trainer.val_every or trainer.val_every > RunSettings(run).last_step:
        return
    try:
        path = run.data.path_of("val")
    except ValueError as error:
        raise ConfigError(f"trainer.val_every={trainer.val_every}, but {error}") from error
    if path == run.data.val_path:
        check_data_path(path)
    count = num_samples(path, "val")
    needed = trainer.micro_batch_size * data_parallel_size
    if count >= needed:
        return
    held = f"has {count} samples" if count else "has no sample"
    more = (
        "add entries to the file"
        if is_jsonl(path)
        else f"give it more shards (`python -m data_prep prepare {path} --split 8,1,1`; where "
        "there are few shards, make smaller ones)"
    )
    raise ConfigError(
        f"the val split of {path} {held}, and a validation needs at least {needed}, a micro batch "
        f"of {trainer.micro_batch_size} on each of {data_parallel_size} data-parallel ranks: "
        f"{more}, lower MBS, or set trainer.val_every=0"
    )
