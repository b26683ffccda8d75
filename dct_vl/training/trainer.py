"""NeMo's Trainer for a run, with this project's callbacks and loggers."""

from __future__ import annotations

import os
from pathlib import Path

from dct_vl.compat import activate

activate()

import nemo.lightning as nl  # noqa: E402
import torch  # noqa: E402
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger  # noqa: E402
from megatron.core.distributed import DistributedDataParallelConfig  # noqa: E402

from dct_vl.model.layer_specs import resolve_layer_spec  # noqa: E402
from dct_vl.runs.checks import Division  # noqa: E402
from dct_vl.runs.config.schema import RunConfig  # noqa: E402
from dct_vl.runs.derived import RunSettings  # noqa: E402
from dct_vl.runs.run_files import wandb_id  # noqa: E402
from dct_vl.training.optim.speed import SpeedUp, resolve_speed  # noqa: E402
from dct_vl.training.restart.checkpoints import CheckpointWriter  # noqa: E402
from dct_vl.training.restart.resume import stream_settings, tensor_settings  # noqa: E402
from dct_vl.training.restart.stop_signals import StopSignals  # noqa: E402
from dct_vl.training.watch.guard_rails import GuardRails  # noqa: E402
from dct_vl.training.watch.out_of_memory import MemoryWatch  # noqa: E402
from dct_vl.training.watch.rank_watch import RankWatch  # noqa: E402
from dct_vl.training.watch.step_log import ParameterReport, StepLog  # noqa: E402


def build_trainer(
    run: RunConfig,
    folder: Path,
    division: Division,
    stop: StopSignals,
    memory: MemoryWatch,
    *,
    began_at: str | None = None,
) -> nl.Trainer:
    """NeMo's Trainer with MegatronStrategy and this project's callbacks; for `began_at` see
    `dct_vl.training.restart.resume.began_at`.
    """
    settings = RunSettings(run)
    dtype = settings.dtype
    trainer = run.trainer
    strategy = nl.MegatronStrategy(
        tensor_model_parallel_size=trainer.tensor_parallel_size,
        pipeline_model_parallel_size=trainer.pipeline_parallel_size,
        context_parallel_size=trainer.context_parallel_size,
        sequence_parallel=trainer.sequence_parallel,
        pipeline_dtype=dtype,
        ddp=DistributedDataParallelConfig(
            use_distributed_optimizer=trainer.distributed_optimizer,
            grad_reduce_in_fp32=dtype != torch.float32,
            overlap_grad_reduce=False,
        ),
        ckpt_async_save=trainer.async_save,
        # a layout that any number of ranks can read back, and the one that copes with torch's
        # AdamW (used where Transformer Engine's or Apex's is absent), whose state has a step
        ckpt_optim_fully_reshardable=True,
        gradient_as_bucket_view=True,
        # this project shows its own progress
        replace_progress_bar=False,
    )
    precision = "bf16-mixed" if dtype == torch.bfloat16 else "32"
    meta = {
        **stream_settings(run),
        "tuning": tensor_settings(run),
        "world_size": division.world_size,
        "data_parallel_size": division.data_parallel_size,
        "data.num_workers": run.data.num_workers,
        "began_at": began_at,
    }
    speed_up = SpeedUp(resolve_speed(run.speed), resolve_layer_spec(run.model.layer_spec))
    num_nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    return nl.Trainer(
        accelerator="gpu" if settings.on_cuda else "cpu",
        devices=division.world_size // num_nodes,
        num_nodes=num_nodes,
        max_steps=settings.last_step,
        strategy=strategy,
        plugins=nl.MegatronMixedPrecision(precision=precision),
        callbacks=[
            ParameterReport(folder, tuning=run.model.tuning),
            speed_up,
            RankWatch(
                folder,
                rank=int(os.environ.get("RANK", "0")),
                world_size=division.world_size,
                after_s=trainer.stall_warning_s,
            ),
            memory,
            StepLog(
                folder,
                last_step=settings.last_step,
                log_every=trainer.log_every,
                flops=settings.step_flops(),
            ),
            # a step that ends the run is logged, and not saved
            GuardRails(
                folder,
                policy=trainer.on_bad_loss,
                spike_factor=trainer.spike_factor,
                speed_up=speed_up,
            ),
            CheckpointWriter(
                folder,
                every=trainer.save_every,
                last_step=settings.last_step,
                keep=trainer.keep_last,
                keep_best=trainer.keep_best,
                is_async=trainer.async_save,
                meta=meta,
                stop=stop,
            ),
        ],
        logger=build_loggers(run, folder),
        val_check_interval=trainer.val_every or None,
        check_val_every_n_epoch=None,
        limit_val_batches=validation_batches(run, division),
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=trainer.log_every,
        use_distributed_sampler=False,
    )


def validation_batches(run: RunConfig, division: Division) -> int:
    """Micro batches of a validation on each data-parallel rank: `trainer.val_batches`, and what
    completes the last step.

    Megatron takes as many at once as a step has. NeMo leaves a rest out of the loss, and where
    there is nothing but a rest, the validation.
    """
    trainer = run.trainer
    of_step = division.num_micro_batches
    return -(-trainer.val_batches // of_step) * of_step if trainer.val_every else 0


def build_loggers(run: RunConfig, folder: Path) -> list[Logger]:
    """TensorBoard, and Weights & Biases where asked for; a resumed run keeps its W&B run."""
    loggers: list[Logger] = []
    if run.logger.tensorboard:
        loggers.append(TensorBoardLogger(save_dir=folder, name="tensorboard", version=""))
    if run.logger.wandb_project:
        is_first = os.environ.get("RANK", "0") == "0"
        loggers.append(
            WandbLogger(
                project=run.logger.wandb_project,
                name=run.experiment_name,
                save_dir=folder,
                id=wandb_id(folder) if is_first else None,
                resume="allow",
            )
        )
    return loggers
