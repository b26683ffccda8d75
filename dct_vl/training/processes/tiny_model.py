"""`model=tiny` and `model=tiny25`: a random Qwen2-VL or Qwen2.5-VL made on first use, its tokenizer
trained on the shards' words.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Literal

from data_prep.remote import folder_at, is_url
from data_prep.schema import ChatRecord, SchemaError, parse_record
from data_prep.shards import iter_samples, read_sample, shard_names
from dct_vl.errors import ConfigError
from dct_vl.inputs.jsonl import is_jsonl, read_chats
from dct_vl.runs.config.schema import RunConfig
from dct_vl.runs.data_checks import check_data_path

#: value of model.path that asks for a generated model → its shape
AUTO: dict[str, Literal["tiny", "tiny25"]] = {"auto": "tiny", "auto25": "tiny25"}
#: samples whose texts the tokenizer is trained on
NUM_SAMPLES = 2000


def with_model_folder(run: RunConfig) -> RunConfig:
    """The configuration with a real folder in model.path.

    The generated folder is named after the dataset and the seed, made beside its place and
    renamed, so that several processes may ask for it at once.

    Raises:
        ConfigError: model.path asks for a generated model, and the dataset is not there, or has no
            text to train a tokenizer on.
    """
    if run.model.path not in AUTO:
        return run
    check_data_path(run.data.path)
    where = run.data.path if is_url(run.data.path) else str(Path(run.data.path).resolve())
    name = hashlib.sha256(f"{where} {run.seed}".encode()).hexdigest()[:12]
    folder = Path(run.model.cache_dir) / f"{AUTO[run.model.path]}-{name}"
    if not (folder / "config.json").is_file():
        _make(folder, run)
    return replace(run, model=replace(run.model, path=str(folder)))


def _make(folder: Path, run: RunConfig) -> None:
    from dct_vl.model.random_model import write_random_model

    texts = [text for text in islice(shard_texts(run.data.path), NUM_SAMPLES) if text]
    if not texts:
        raise ConfigError(
            f"model=tiny trains its tokenizer on the dataset's texts, and {run.data.path} has "
            "none in its shards: set model.path to a folder"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".tiny-", dir=folder.parent))
    try:
        write_random_model(made, corpus=texts, shape=AUTO[run.model.path], seed=run.seed)
        os.rename(made, folder)
    except OSError:
        if not (folder / "config.json").is_file():
            raise
        # another process was faster; its folder holds the same
    finally:
        shutil.rmtree(made, ignore_errors=True)


def shard_texts(path: str) -> Iterator[str]:
    """The conversations of a dataset, one text a sample, in the order of its shards or lines."""
    if is_jsonl(path):
        yield from (_text(chat.record) for chat in read_chats(path) if not chat.fault)
        return
    root = folder_at(path)
    for name in shard_names(root):
        with (root / name).open("rb") as shard:
            for sample in iter_samples(shard):
                try:
                    yield _joined(read_sample(sample, shard)[0])
                except SchemaError:
                    continue


def _text(record: bytes) -> str:
    return _joined(parse_record(record))


def _joined(record: ChatRecord) -> str:
    return " ".join(turn.text.replace("<image>", "").strip() for turn in record.turns)
