"""A dataset and a model to check layouts with, made from nothing in a few seconds."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.drawn import write_drawn_dataset
from data_prep.energon import prepare
from data_prep.executor import InProcessExecutor
from data_prep.options import Options
from data_prep.progress import Reporter
from data_prep.run import Job, run
from dct_vl.errors import ConfigError
from dct_vl.model.random_model import TinyShape, write_random_model
from dct_vl.model.random_model.tokenizer import conversation_texts

_MARK = ".layout_check"
#: divisible by four tensor-parallel ranks and four pipeline stages
SHAPE = TinyShape(
    hidden_size=64,
    num_layers=4,
    num_heads=4,
    num_kv_heads=4,
    intermediate_size=96,
    vision_depth=2,
    vision_embed_dim=64,
    vision_num_heads=4,
    init_std=0.1,
    max_bpe_size=512,
)
#: `model_type` → sizes
SHAPES = {
    "qwen2_vl": SHAPE,
    "qwen2_5_vl": replace(SHAPE, model_type="qwen2_5_vl", vision_full_layers=(1,)),
}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What every run of a check shares."""

    shards: Path
    model: Path


def make_inputs(work_dir: Path, model_type: str = "qwen2_vl") -> Inputs:
    """Draw conversations, make shards prepared for Energon, and write a random model.

    What an earlier check left in the folder is removed.

    Raises:
        ConfigError: the folder holds something else, or no model is of this type.
    """
    shape = SHAPES.get(model_type)
    if shape is None:
        raise ConfigError(f"--model-type {model_type!r}; expected one of {', '.join(SHAPES)}")
    held = work_dir.exists() and (not work_dir.is_dir() or any(work_dir.iterdir()))
    if held and not (work_dir / _MARK).is_file():
        raise ConfigError(f"--work-dir {work_dir} holds something else; name a new folder")
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    (work_dir / _MARK).touch()
    raw, shards, model = (work_dir / name for name in ("raw", "shards", "model"))
    write_drawn_dataset(raw, num_entries=150, seed=3, image_size=112)
    job = Job(data_dir=raw, output_dir=shards, json=None, options=Options(text_only="keep"))
    run(job, InProcessExecutor(), Reporter())
    prepare(shards, "8,1,1", num_workers=1)
    texts = list(conversation_texts(raw / "cambrian737k.json"))
    write_random_model(model, corpus=texts, shape=shape)
    return Inputs(shards=shards, model=model)
