"""One training run on NeMo's Trainer and MegatronStrategy."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from training.compat import activate

activate()

import lightning.pytorch as pl  # noqa: E402
import nemo.lightning as nl  # noqa: E402
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger  # noqa: E402
from megatron.core.distributed import DistributedDataParallelConfig  # noqa: E402
from megatron.core.optimizer import OptimizerConfig  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from dct_tokenizer import VisualTokenizer, build_tokenizer  # noqa: E402
from training.callbacks import StepLog  # noqa: E402
from training.checkpoint_files import find_fault, read_meta  # noqa: E402
from training.checkpoints import (  # noqa: E402
    CheckpointWriter,
    checkpoint_step,
    list_checkpoints,
    newest_sound,
)
from training.config.checks import Layout, check_run  # noqa: E402
from training.config.overrides import ConfigError  # noqa: E402
from training.config.schema import RunConfig  # noqa: E402
from training.config.tuning import (  # noqa: E402
    rate_multipliers,
    trained_parts,
    tuning_settings,
)
from training.config.video import video_rules  # noqa: E402
from training.data.chat import ChatTokenizer  # noqa: E402
from training.data.loader_state import check_streams  # noqa: E402
from training.data.module import ChatDataModule  # noqa: E402
from training.data.pack_encoder import ChatPackEncoder  # noqa: E402
from training.data.rejects import RejectLog  # noqa: E402
from training.data.task_encoder import ChatTaskEncoder  # noqa: E402
from training.errors import RunError, StopRequested  # noqa: E402
from training.guard_rails import GuardRails  # noqa: E402
from training.ledger import forget_steps_after  # noqa: E402
from training.model.from_hf import ModelOptions, model_config  # noqa: E402
from training.model.layer_specs import resolve_layer_spec  # noqa: E402
from training.model.module import TokenizerQwen2VLModel  # noqa: E402
from training.model.part_optimizer import PartOptimizer  # noqa: E402
from training.out_of_memory import MemoryWatch, is_out_of_memory  # noqa: E402
from training.parameter_report import ParameterReport  # noqa: E402
from training.rank_watch import RankWatch  # noqa: E402
from training.report import write_run_summary  # noqa: E402
from training.run_files import run_dir, write_provenance  # noqa: E402
from training.schedule import RunLongCosine  # noqa: E402
from training.speed import SpeedUp, resolve_speed  # noqa: E402
from training.stop_signals import StopSignals  # noqa: E402
from training.tiny_model import with_model_folder  # noqa: E402


def fit(run: RunConfig) -> Path:
    """Train, or go on training, and return the run's folder.

    Call it in every process of the job (torchrun sets WORLD_SIZE, RANK and LOCAL_RANK). It returns
    as well where a signal has stopped the run, whose newest checkpoint is then of the last step.

    Raises:
        ConfigError: the configuration cannot work; said before models or data are touched.
        RunError: memory ran out, or a step was bad and the policy is to stop.
    """
    stop = StopSignals()
    stop.install()
    try:
        return _fit(run, stop)
    finally:
        stop.restore()


def _fit(run: RunConfig, stop: StopSignals) -> Path:
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    layout = check_run(run, world_size)
    run = with_model_folder(run)
    folder = run_dir(run)
    resume = find_resume(run, folder, layout.data_parallel_size)
    is_first = int(os.environ.get("RANK", "0")) == 0
    if is_first:
        # 0 as well for a run that starts from a checkpoint in another run's folder
        goes_on = resume and resume.resolve().parent.parent == folder.resolve()
        resumed_at = checkpoint_step(resume) if resume and goes_on else 0
        write_provenance(run, folder, resumed_at=resumed_at)
        forget_steps_after(folder, resumed_at)
    pl.seed_everything(run.seed, verbose=False)
    visual = build_visual(run)
    model = build_model(run, visual, load_weights=resume is None)
    data = build_data(run, visual)
    memory = MemoryWatch(run, layout.data_parallel_size)
    trainer = build_trainer(run, folder, layout, stop, memory)
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
    finally:
        if is_first:
            write_run_summary(folder)
    return folder


def find_resume(run: RunConfig, folder: Path, data_parallel_size: int = 1) -> Path | None:
    """The checkpoint to go on from: of this run's, the newest one without a fault.

    Raises:
        ConfigError: the run's folder already holds another run, or the checkpoint was made with
            settings that decide its sample stream, or lies at or beyond the last step, or is
            damaged and there is none before it.
    """
    held = list_checkpoints(folder)
    wanted = run.trainer.resume
    newest = held[-1] if held else None
    if wanted == "auto" and held:
        sound = newest_sound(folder)
        newest = sound.path
        faults = [f"{path.name} is damaged: {fault}" for path, fault in sound.damaged]
        if newest is None:
            raise ConfigError(
                f"no checkpoint of {folder} can be gone on from ({'; '.join(faults)}): use another "
                "experiment_name, or remove the folder"
            )
        if faults and os.environ.get("RANK", "0") == "0":
            again = f"going on from {newest.name}"
            print(f"warning: {'; '.join(faults)}; {again}", file=sys.stderr)
    path = {"never": None, "auto": newest}.get(wanted, Path(wanted))
    if path is None or path.resolve().parent.parent != folder.resolve():
        if held:
            raise ConfigError(
                f"{folder} already holds a run, at step {checkpoint_step(held[-1])}: use another "
                "experiment_name, remove the folder, or go on from it with trainer.resume=auto"
            )
    elif path != newest:
        raise ConfigError(
            f"{folder} holds later steps than {path}: go on from it under another experiment_name"
        )
    if path is None:
        return None
    if wanted != "auto" and (fault := find_fault(path)):
        raise ConfigError(f"trainer.resume={path}: {fault}")
    meta = read_meta(path)
    for name, value in stream_settings(run).items():
        if meta.get(name) != value:
            raise ConfigError(
                f"{path} was trained with {name} = {meta.get(name)}, this run has {value}: set it "
                "back, or use another experiment_name"
            )
    tuned = meta.get("tuning", {})
    for name, value in tuning_settings(run).items():
        if name in tuned and tuned[name] != value:
            raise ConfigError(
                f"{path} was trained with {name} = {tuned[name]}, this run has {value}: set it "
                "back, or use another experiment_name"
            )
    if "data_parallel_size" in meta:
        check_streams(
            ranks_before=meta["data_parallel_size"],
            workers_before=meta["data.num_workers"],
            num_ranks=data_parallel_size,
            num_workers=run.data.num_workers,
        )
    if meta["step"] >= last_step(run):
        raise ConfigError(
            f"{path} is at step {meta['step']} already and this run ends at {last_step(run)}: "
            "raise trainer.max_steps, or use another experiment_name"
        )
    return path


def stream_settings(run: RunConfig) -> dict[str, object]:
    """What a resumed run must share with the one before, to go on with the very next sample."""
    return {
        "tokenizer": run.tokenizer,
        "data": data_fingerprint(run.data.path),
        "data.min_pixels": run.data.min_pixels,
        "data.max_pixels": run.data.max_pixels,
        "data.video": asdict(video_rules(run.data)),
        "data.shuffle_buffer_size": run.data.shuffle_buffer_size,
        "data.max_samples_per_sequence": run.data.max_samples_per_sequence,
        "data.packing": packing_settings(run),
        "trainer.micro_batch_size": run.trainer.micro_batch_size,
        "trainer.global_batch_size": run.trainer.global_batch_size,
        "seed": run.seed,
    }


def packing_settings(run: RunConfig) -> dict[str, int] | None:
    """What decides which samples share a row; None without packing."""
    if not run.data.packing:
        return None
    return {
        "seq_length": run.data.seq_length,
        "packing_buffer_size": run.data.packing_buffer_size,
        "max_patches_per_pack": max_patches_per_pack(run),
    }


def max_patches_per_pack(run: RunConfig) -> int:
    """Most ViT patches in a pack: as many as seq_length tokens of 2 × 2 patches, if not set."""
    chosen = run.data.max_patches_per_pack
    return 4 * run.data.seq_length if chosen is None else chosen


def data_fingerprint(path: str) -> str:
    """Short hash of what Energon knows of a dataset: its shards, their samples and the split.

    It stays the same when the folder is moved.
    """
    where = Path(path)
    names = (".nv-meta/.info.json", ".nv-meta/split.yaml") if where.is_dir() else ("",)
    digest = hashlib.sha256()
    for name in names:
        digest.update((where / name).read_bytes())
    return digest.hexdigest()[:16]


def last_step(run: RunConfig) -> int:
    """The step at which this process stops."""
    trainer = run.trainer
    return min(trainer.max_steps, trainer.stop_at_step or trainer.max_steps)


def build_visual(run: RunConfig) -> VisualTokenizer:
    """The run's visual tokenizer with its pixel bounds."""
    return build_tokenizer(
        run.tokenizer, min_pixels=run.data.min_pixels, max_pixels=run.data.max_pixels
    )


def uses_cuda(run: RunConfig) -> bool:
    """Does this run train on CUDA devices?

    Raises:
        ConfigError: it should, and there are none.
    """
    wanted = run.trainer.accelerator
    if wanted not in ("auto", "cpu", "gpu"):
        raise ConfigError(f"trainer.accelerator={wanted!r}; expected auto, cpu or gpu")
    if wanted == "gpu" and not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator=gpu, but torch sees no CUDA device; use cpu or auto")
    if wanted == "cpu" and torch.cuda.is_available():
        raise ConfigError(
            "trainer.accelerator=cpu on a machine with CUDA devices: hide them with "
            "CUDA_VISIBLE_DEVICES= so that NeMo does not use them"
        )
    return torch.cuda.is_available()


def model_dtype(run: RunConfig) -> torch.dtype:
    """Dtype of the parameters and activations."""
    choices = {"bf16": torch.bfloat16, "fp32": torch.float32}
    if run.model.dtype == "auto":
        return torch.bfloat16 if uses_cuda(run) else torch.float32
    if run.model.dtype not in choices:
        raise ConfigError(f"model.dtype={run.model.dtype!r}; expected auto, bf16 or fp32")
    return choices[run.model.dtype]


def build_model(
    run: RunConfig, visual: VisualTokenizer, *, load_weights: bool
) -> TokenizerQwen2VLModel:
    """The Lightning module with its optimizer, not yet built on any device."""
    trainer = run.trainer
    speed = resolve_speed(run.speed)
    options = ModelOptions(
        layer_spec=resolve_layer_spec(run.model.layer_spec),
        dtype=model_dtype(run),
        seq_length=run.data.seq_length,
        tokenizer=run.tokenizer,
        tensor_model_parallel_size=trainer.tensor_parallel_size,
        pipeline_model_parallel_size=trainer.pipeline_parallel_size,
        context_parallel_size=trainer.context_parallel_size,
        sequence_parallel=trainer.sequence_parallel,
        fused_layers=speed.fused_layers,
        recompute=speed.recompute,
    )
    config = model_config(run.model.path, options)
    return TokenizerQwen2VLModel(
        config,
        hf_folder=run.model.path if load_weights else None,
        optim=build_optimizer(run),
        trained=trained_parts(run.model),
        lora=run.model.lora if run.model.tuning == "lora" else None,
        seed=run.seed,
        answer_loss=speed.answer_loss,
    )


def build_optimizer(run: RunConfig) -> PartOptimizer:
    """Megatron's AdamW with a cosine schedule and a rate for each part."""
    dtype = model_dtype(run)
    config = OptimizerConfig(
        optimizer="adam",
        lr=run.optim.lr,
        min_lr=run.optim.min_lr,
        weight_decay=run.optim.weight_decay,
        adam_beta1=run.optim.adam_beta1,
        adam_beta2=run.optim.adam_beta2,
        clip_grad=run.optim.clip_grad,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=run.trainer.distributed_optimizer,
    )
    schedule = RunLongCosine(
        num_steps=run.trainer.max_steps,
        warmup_steps=run.optim.warmup_steps,
        min_lr=run.optim.min_lr,
    )
    return PartOptimizer(config, schedule, multipliers=rate_multipliers(run.optim))


def build_data(run: RunConfig, visual: VisualTokenizer) -> ChatDataModule:
    """The Energon data module."""
    chat = ChatTokenizer(AutoTokenizer.from_pretrained(run.model.path))
    trainer = run.trainer
    tp = trainer.tensor_parallel_size

    def options(rejects: str) -> dict[str, Any]:
        return {
            "chat": chat,
            "visual": visual,
            "video": video_rules(run.data),
            "seq_length": run.data.seq_length,
            "rejects": RejectLog(
                run_dir(run) / rejects, run.data.path, run.data.max_rejects_in_a_row
            ),
        }

    def padding_encoder(rejects: str) -> ChatTaskEncoder:
        return ChatTaskEncoder(
            **options(rejects),
            # pipeline stages exchange activations of one fixed shape
            pad_to=run.data.seq_length if trainer.pipeline_parallel_size > 1 else None,
            pad_multiple=8 * tp,
        )

    return ChatDataModule(
        run,
        task_encoder=ChatPackEncoder(**options("rejects"), max_patches=max_patches_per_pack(run))
        if run.data.packing
        else padding_encoder("rejects"),
        validation_task_encoder=padding_encoder("rejects_val"),
    )


def build_trainer(
    run: RunConfig, folder: Path, layout: Layout, stop: StopSignals, memory: MemoryWatch
) -> nl.Trainer:
    """NeMo's Trainer with MegatronStrategy and this project's callbacks."""
    on_cuda = uses_cuda(run)
    dtype = model_dtype(run)
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
        ckpt_async_save=False,
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
        "tuning": tuning_settings(run),
        "world_size": layout.world_size,
        "data_parallel_size": layout.data_parallel_size,
        "data.num_workers": run.data.num_workers,
    }
    speed_up = SpeedUp(resolve_speed(run.speed))
    num_nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    return nl.Trainer(
        accelerator="gpu" if on_cuda else "cpu",
        devices=layout.world_size // num_nodes,
        num_nodes=num_nodes,
        max_steps=last_step(run),
        strategy=strategy,
        plugins=nl.MegatronMixedPrecision(precision=precision),
        callbacks=[
            ParameterReport(folder, tuning=run.model.tuning),
            speed_up,
            RankWatch(
                folder,
                rank=int(os.environ.get("RANK", "0")),
                world_size=layout.world_size,
                after_s=trainer.stall_warning_s,
            ),
            memory,
            StepLog(folder, last_step=last_step(run), log_every=trainer.log_every),
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
                last_step=last_step(run),
                keep=trainer.keep_last,
                keep_best=trainer.keep_best,
                meta=meta,
                stop=stop,
            ),
        ],
        logger=build_loggers(run, folder),
        val_check_interval=trainer.val_every or None,
        check_val_every_n_epoch=None,
        limit_val_batches=trainer.val_batches if trainer.val_every else 0,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=trainer.log_every,
        use_distributed_sampler=False,
    )


def build_loggers(run: RunConfig, folder: Path) -> list[Logger]:
    """TensorBoard, and Weights & Biases where asked for."""
    loggers: list[Logger] = []
    if run.logger.tensorboard:
        loggers.append(TensorBoardLogger(save_dir=folder, name="tensorboard", version=""))
    if run.logger.wandb_project:
        loggers.append(
            WandbLogger(project=run.logger.wandb_project, name=run.experiment_name, save_dir=folder)
        )
    return loggers
