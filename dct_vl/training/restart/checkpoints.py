"""Atomic checkpoints, and which of a run's are kept.

A checkpoint is a NeMo distributed checkpoint in RUN/checkpoints/step-00000100. It is written under
another name and renamed when all ranks are done, so that a killed run leaves nothing half-made.

Where it is written while training goes on, Megatron copies the state to host memory, forks a
process on each rank that writes it, and looks after each step whether all are done. A trainer that
is killed leaves such processes behind, at work: each start writes under names of its own, so that
they cannot reach what a later one writes.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import lightning.pytorch as pl
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from dct_vl.errors import RunError, SaveError, StopRequested
from dct_vl.runs.checkpoint_files import (
    META_NAME,
    best_checkpoints,
    checkpoint_folders,
    checkpoint_step,
    list_checkpoints,
    list_files,
    newest_checkpoint,
)
from dct_vl.training.restart.stop_signals import StopSignals, shield_from_signals


def drop_checkpoints(run_dir: str | Path, *, keep_last: int, keep_best: int) -> None:
    """Remove all but the newest and the best complete checkpoints."""
    found = list_checkpoints(run_dir)
    kept = {*found[-keep_last:], *best_checkpoints(run_dir, keep_best)}
    for path in found:
        if path not in kept:
            # under this name it no longer counts, and the next start removes it, if killed here
            dropped = path.with_name(f"{path.name}-dropped-{uuid4().hex[:8]}")
            os.replace(path, dropped)
            # what somebody still reads can stay; it must not end the training
            shutil.rmtree(dropped, ignore_errors=True)


def set_aside_after(run_dir: str | Path, step: int) -> None:
    """Rename checkpoints of later steps than a run resumes from: they are damaged, and would be
    taken for its newest ones.
    """
    for path in checkpoint_folders(run_dir):
        if checkpoint_step(path) > step:
            aside = path.with_name(f"{path.name}-damaged")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
            print(f"warning: {path} is now {aside.name}; remove it when looked at", file=sys.stderr)


def remove_leftovers(run_dir: str | Path) -> None:
    """Remove what killed trainers have not finished writing or dropping."""
    for state in ("unfinished", "dropped"):
        for path in (Path(run_dir) / "checkpoints").glob(f"step-*-{state}*"):
            shutil.rmtree(path, ignore_errors=True)


def explain_unwritten(run_dir: str | Path, what: str, error: BaseException) -> str:
    """The message of a run that could not write `what` to its folder."""
    free = shutil.disk_usage(run_dir).free / 2**30
    newest = newest_checkpoint(run_dir)
    held = f"the newest checkpoint is {newest.name}" if newest else "there is no checkpoint yet"
    reason = str(error).strip().splitlines()[-1]
    return (
        f"{what} could not be written ({reason}); {held}. {free:.2f} GiB are free in {run_dir}: "
        "make room, and the same command goes on from there"
    )


class CheckpointWriter(pl.Callback):
    """Saves every `every` steps, at the last one and where a signal stops the run.

    Args:
        every: steps; 0 saves at the last step only, -1 never.
        last_step: the step at which this process stops.
        keep: newest checkpoints that are kept.
        meta: written into each checkpoint.
        stop: signals that end the run.
        keep_best: checkpoints of lowest validation loss that are kept besides.
        is_async: go on training while a checkpoint is written; the strategy must do so too.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        every: int,
        last_step: int,
        keep: int,
        meta: dict[str, Any],
        stop: StopSignals,
        keep_best: int = 0,
        is_async: bool = False,
    ) -> None:
        self.folder = Path(run_dir) / "checkpoints"
        self.every = every
        self.last_step = last_step
        self.keep = keep
        self.keep_best = keep_best
        self.meta = meta
        self.stop = stop
        self.is_async = is_async
        #: ends the names of what this start of the run has not finished
        self._mark = ""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Set damaged checkpoints aside; every rank has read the one that it resumes from.

        Raises:
            StopRequested: a signal came while everything was made ready.
        """
        # Lightning has taken the signals for itself since
        self.stop.install()
        trainer._signal_connector.received_sigterm = False
        self.stop.connect()
        # saved between two validations: the next one is not to begin where the last one ended
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.reset()
        if self.every >= 0:
            shield_from_signals()
        mark = [os.urandom(4).hex()]
        dist.broadcast_object_list(mark, src=0)
        self._mark = mark[0]
        if trainer.is_global_zero:
            set_aside_after(self.folder.parent, trainer.global_step)
            remove_leftovers(self.folder.parent)
        if self.stop.agreed():
            raise StopRequested(trainer.global_step, saved=True)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save inside `fit()`: afterwards NeMo changes the names of the parameters.

        Raises:
            StopRequested: a signal came, and what the steps so far have made is saved.
        """
        step = trainer.global_step
        stops = self.stop.agreed() and step < self.last_step
        due = step == self.last_step or (self.every > 0 and step % self.every == 0)
        if self.every >= 0 and (due or stops):
            self.save(trainer, step)
            # a signal that came meanwhile needs no other step, and no other save
            stops = stops or (self.stop.agreed() and step < self.last_step)
        if stops or step == self.last_step:
            self.wait(trainer)
        if stops:
            raise StopRequested(step, saved=self.every >= 0)

    def on_exception(
        self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Where all ranks end the run together, what is being written is still worth having."""
        if isinstance(exception, RunError | StopRequested) and not isinstance(exception, SaveError):
            self.wait(trainer)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """The newest checkpoint has its validation loss now."""
        if trainer.is_global_zero and self.keep_best:
            self._drop()

    def save(self, trainer: pl.Trainer, step: int) -> None:
        """Write the checkpoint of `step`, publish it, drop others; or begin to."""
        self.wait(trainer)
        unfinished = self.folder / f"step-{step:08d}-unfinished-{self._mark}"
        publish = partial(self._publish, trainer, step, unfinished)
        if self.is_async:
            trainer.save_checkpoint(unfinished, storage_options={"finalize_fn": publish})
            return
        try:
            trainer.save_checkpoint(unfinished)
        except (OSError, CheckpointException) as error:
            what = f"the checkpoint of step {step}"
            raise SaveError(explain_unwritten(self.folder.parent, what, error)) from error
        dist.barrier()
        publish()
        dist.barrier()

    def wait(self, trainer: pl.Trainer) -> None:
        """Wait for the checkpoint that is being written, if there is one; every rank calls it."""
        if self.is_async:
            writer: Any = trainer.strategy.checkpoint_io
            writer.maybe_finalize_save_checkpoint(blocking=True)

    def _publish(self, trainer: pl.Trainer, step: int, unfinished: Path) -> None:
        """Give a checkpoint its name, after all ranks have written their parts."""
        if not trainer.is_global_zero:
            return
        # another training can write the same step under the same name
        meta = {"id": uuid4().hex, "step": step, **self.meta, "files": list_files(unfinished)}
        (unfinished / META_NAME).write_text(json.dumps(meta, indent=2))
        final = self.folder / f"step-{step:08d}"
        shutil.rmtree(final, ignore_errors=True)
        os.replace(unfinished, final)
        self._drop()

    def _drop(self) -> None:
        drop_checkpoints(self.folder.parent, keep_last=self.keep, keep_best=self.keep_best)
