"""One training run on NeMo's Trainer and MegatronStrategy."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from dct_vl.compat import activate

activate()

import lightning.pytorch as pl  # noqa: E402
from megatron.energon.errors import FatalSampleError  # noqa: E402
from torch.distributed.checkpoint.api import CheckpointException  # noqa: E402

from dct_vl.errors import RunError, StopRequested  # noqa: E402
from dct_vl.runs.checkpoint_files import checkpoint_step  # noqa: E402
from dct_vl.runs.checks import check_run  # noqa: E402
from dct_vl.runs.config.schema import RunConfig  # noqa: E402
from dct_vl.runs.ledger import forget_steps_after  # noqa: E402
from dct_vl.runs.run_files import (  # noqa: E402
    begin_wandb_run,
    claim,
    run_dir,
    write_provenance,
)
from dct_vl.training.build import build_data, build_model  # noqa: E402
from dct_vl.training.processes.supervise import first_cause  # noqa: E402
from dct_vl.training.processes.tiny_model import with_model_folder  # noqa: E402
from dct_vl.training.report.run_summary import try_run_summary  # noqa: E402
from dct_vl.training.restart.checkpoints import explain_unwritten  # noqa: E402
from dct_vl.training.restart.resume import (  # noqa: E402
    RunFinished,
    began_at,
    find_resume,
    is_own,
    with_epochs_of,
)
from dct_vl.training.restart.stop_signals import StopSignals  # noqa: E402
from dct_vl.training.trainer import build_trainer  # noqa: E402
from dct_vl.training.watch.out_of_memory import MemoryWatch, is_out_of_memory  # noqa: E402
from dct_vl.training.watch.rank_watch import clear_places  # noqa: E402


def fit(run: RunConfig) -> Path:
    """Train, or resume, and return the run's folder.

    Call it in every process of the job (torchrun sets WORLD_SIZE, RANK and LOCAL_RANK). It returns
    as well where a signal has stopped the run, whose newest checkpoint is then of the last step,
    and, at once, where the run is finished: a job that comes back after its end has not failed.

    Raises:
        ConfigError: the configuration cannot work; said before models or data are touched.
        RunError: memory or the disk ran out, or a step was bad and the policy is to stop.
    """
    stop = StopSignals()
    stop.install()
    try:
        return _fit(run, stop)
    finally:
        stop.restore()


def _fit(run: RunConfig, stop: StopSignals) -> Path:
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    division = check_run(run, world_size)
    run = with_model_folder(run)
    folder = run_dir(run)
    is_first = int(os.environ.get("RANK", "0")) == 0
    if is_first:
        claim(folder)
    try:
        resume = find_resume(run, folder, division.data_parallel_size)
    except RunFinished as finished:
        if is_first:
            print(finished, file=sys.stderr)
            try_run_summary(folder)
        return folder
    run = with_epochs_of(run, resume)
    if is_first:
        # 0 as well for a run that starts from a checkpoint in another run's folder
        resumed_at = checkpoint_step(resume) if resume and is_own(resume, folder) else 0
        write_provenance(run, folder, resumed_at=resumed_at)
        forget_steps_after(folder, resumed_at)
        if not resumed_at:
            begin_wandb_run(folder)
        clear_places(folder)
    pl.seed_everything(run.seed, verbose=False)
    model = build_model(run, load_weights=resume is None)
    data = build_data(run)
    memory = MemoryWatch(run, world_size)
    origin = began_at(resume, folder)
    trainer = build_trainer(run, folder, division, stop, memory, began_at=origin)
    try:
        trainer.fit(model, data, ckpt_path=str(resume) if resume else None)
    except StopRequested as stopped:
        if is_first:
            kept = "saved; the same command goes on from there" if stopped.saved else "not saved"
            print(f"stopped by a signal after step {stopped.step}, {kept}", file=sys.stderr)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(memory.explain(trainer, model, error)) from error
    except FatalSampleError as error:
        # a loader process's stacks around what `dct_vl.inputs.rejects` said
        said = first_cause(error).partition(": ")[2]
        left_out = folder / "rejects"
        named = "" if str(left_out) in said else f"; what was left out is in {left_out}/*.jsonl"
        raise RunError(f"{said}{named}") from error
    except CheckpointException as error:
        raise RunError(explain_unwritten(folder, "a checkpoint", error)) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        what = str(error.filename or "a file of the run")
        raise RunError(explain_unwritten(folder, what, error)) from error
    finally:
        if is_first:
            try_run_summary(folder)
    return folder
