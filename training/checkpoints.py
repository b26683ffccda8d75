"""Checkpoints that are whole or absent, and the newest one of a run.

A checkpoint is a NeMo distributed checkpoint in RUN/checkpoints/step-00000100. It is written under
another name and renamed when all ranks are done, so that a killed run leaves nothing half-made.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist

#: file inside a checkpoint that says what made it
META_NAME = "dct_vl.json"
_NAME = re.compile(r"step-(\d{8})")


def checkpoint_step(path: Path) -> int:
    """Step of a checkpoint's folder; raises ValueError for any other name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is not a checkpoint of this project (step-00000100)")
    return int(match[1])


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folder = Path(run_dir) / "checkpoints"
    found = [p for p in folder.glob("step-*") if _NAME.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(p for p in found if (p / META_NAME).is_file())


def newest_checkpoint(run_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, if there is one."""
    found = list_checkpoints(run_dir)
    return found[-1] if found else None


def read_meta(checkpoint: str | Path) -> dict[str, Any]:
    """What `META_NAME` of a checkpoint holds."""
    path = Path(checkpoint) / META_NAME
    if not path.is_file():
        raise ValueError(f"{checkpoint} is not a checkpoint of this project: no {META_NAME} in it")
    return json.loads(path.read_text())


class CheckpointWriter(pl.Callback):
    """Saves every `every` steps and at the last one, and keeps the newest `keep`.

    Args:
        run_dir: the run's folder.
        every: steps; 0 saves at the last step only, -1 never.
        last_step: the step at which this process stops.
        keep: checkpoints that are kept.
        meta: written into each checkpoint.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        every: int,
        last_step: int,
        keep: int,
        meta: dict[str, Any],
    ) -> None:
        self.folder = Path(run_dir) / "checkpoints"
        self.every = every
        self.last_step = last_step
        self.keep = keep
        self.meta = meta

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save inside `fit()`: afterwards NeMo changes the names of the parameters."""
        step = trainer.global_step
        if self.every < 0:
            return
        if step == self.last_step or (self.every and step % self.every == 0):
            self.save(trainer, step)

    def save(self, trainer: pl.Trainer, step: int) -> None:
        """Write the checkpoint of `step`, publish it, drop the oldest."""
        final = self.folder / f"step-{step:08d}"
        unfinished = self.folder / f"{final.name}-unfinished"
        if trainer.is_global_zero:
            for stale in (unfinished, final):
                shutil.rmtree(stale, ignore_errors=True)
        dist.barrier()
        trainer.save_checkpoint(unfinished)
        dist.barrier()
        if trainer.is_global_zero:
            (unfinished / META_NAME).write_text(json.dumps({"step": step, **self.meta}, indent=2))
            os.replace(unfinished, final)
            for old in list_checkpoints(self.folder.parent)[: -self.keep]:
                # without its meta file it no longer counts as a checkpoint, even if killed here
                (old / META_NAME).unlink()
                shutil.rmtree(old)
        dist.barrier()
