"""The parallel layouts, and a random model and shards to check them with."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
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
from dct_vl.training.processes.tiny_model import shard_texts


@dataclass(frozen=True, kw_only=True)
class ParallelLayout:
    """One way to divide a model and its batches over ranks."""

    name: str
    tp: int = 1
    pp: int = 1
    cp: int = 1
    dp: int = 1
    sequence_parallel: bool = False

    @property
    def num_ranks(self) -> int:
        return self.tp * self.pp * self.cp * self.dp

    def overrides(self, num_streams: int) -> list[str]:
        """Settings of `dct-vl fit`.

        Args:
            num_streams: loader processes of all data-parallel ranks together. With as many in each
                layout, every step sees the same samples.
        """
        return [
            f"trainer.tensor_parallel_size={self.tp}",
            f"trainer.pipeline_parallel_size={self.pp}",
            f"trainer.context_parallel_size={self.cp}",
            f"trainer.sequence_parallel={str(self.sequence_parallel).lower()}",
            f"data.num_workers={num_streams // self.dp}",
        ]


REFERENCE = ParallelLayout(name="single")
LAYOUTS = (
    ParallelLayout(name="tp2", tp=2),
    ParallelLayout(name="tp2_sp", tp=2, sequence_parallel=True),
    ParallelLayout(name="pp2", pp=2),
    ParallelLayout(name="dp2", dp=2),
    ParallelLayout(name="cp2", cp=2),
    ParallelLayout(name="tp2pp2", tp=2, pp=2),
    ParallelLayout(name="tp2dp2_sp", tp=2, dp=2, sequence_parallel=True),
    ParallelLayout(name="tp2cp2_sp", tp=2, cp=2, sequence_parallel=True),
    ParallelLayout(name="pp2cp2", pp=2, cp=2),
    ParallelLayout(name="tp4", tp=4),
    ParallelLayout(name="pp4", pp=4),
    ParallelLayout(name="dp4", dp=4),
)


def choose_layouts(num_ranks: int, only: Sequence[str] = ()) -> list[ParallelLayout]:
    """Layouts that fit.

    Args:
        num_ranks: processes that can run at once.
        only: names; empty takes all that fit.

    Raises:
        ConfigError: an unknown name, a named layout that does not fit, or too few ranks.
    """
    known = {layout.name: layout for layout in LAYOUTS}
    for name in only:
        if name not in known:
            raise ConfigError(f"unknown layout {name!r}; known: {', '.join(known)}")
        if known[name].num_ranks > num_ranks:
            raise ConfigError(
                f"layout {name} takes {known[name].num_ranks} ranks and there are {num_ranks}: "
                "raise --ranks, which takes CPU processes, or leave it out of --only"
            )
    if num_ranks < 2:
        raise ConfigError(
            f"{num_ranks} rank: nothing to compare; give --ranks 2 to use CPU processes"
        )
    chosen = [known[name] for name in only] or list(LAYOUTS)
    return [layout for layout in chosen if layout.num_ranks <= num_ranks]


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
    write_random_model(model, corpus=shard_texts(str(shards)), shape=shape)
    return Inputs(shards=shards, model=model)
