"""Checks of a run's configuration, made before anything heavy starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import attrgetter

from dct_tokenizer import PlanError, TokenizerConfigError
from dct_vl.errors import ConfigError
from dct_vl.model.families.qwen_vl.config import check_model_file, read_model_file
from dct_vl.runs.config.schema import RunConfig
from dct_vl.runs.config.tuning import check_tuning
from dct_vl.runs.data_checks import check_data_path, check_splits
from dct_vl.runs.derived import RunSettings


@dataclass(frozen=True, kw_only=True)
class Division:
    """How processes are divided."""

    world_size: int
    data_parallel_size: int
    num_micro_batches: int


def check_run(run: RunConfig, world_size: int) -> Division:
    """Check a configuration against the number of processes.

    Raises:
        ConfigError: the first thing that cannot work, with the numbers and the fix.
    """
    division = check_layout(run, world_size)
    check_bounds(run)
    settings = RunSettings(run)
    if run.data.min_pixels > run.data.max_pixels:
        raise ConfigError(
            f"MINPIXELS={run.data.min_pixels} is more than MAXPIXELS={run.data.max_pixels} "
            "(data.min_pixels, data.max_pixels): swap them"
        )
    try:
        _ = settings.video_rules
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error
    for name in ("min_pixels", "max_pixels"):
        if name in run.tokenizer:
            raise ConfigError(f"tokenizer.{name}: the bounds of a run are data.{name}")
    try:
        settings.visual.plan(224, 224)
    except (TokenizerConfigError, PlanError) as error:
        raise ConfigError(f"tokenizer: {error}") from error
    check_tuning(run)
    check_data_path(run.data.path)
    check_splits(run, division.data_parallel_size)
    check_model_file(run.model.path)
    check_model_layout(run)
    return division


def check_model_layout(run: RunConfig) -> None:
    """A ConfigError where heads or layers cannot be divided; none where there is no model yet."""
    model = read_model_file(run.model.path)
    if model is None:
        return
    vision = model.get("vision_config", {})
    check_divisions(
        run,
        heads=model.get("num_attention_heads"),
        groups=model.get("num_key_value_heads"),
        layers=model.get("num_hidden_layers"),
        vision_heads=vision.get("num_heads"),
        vision_mlp=vision.get("intermediate_size"),
    )


def check_divisions(
    run: RunConfig,
    *,
    heads: int | None,
    groups: int | None,
    layers: int | None,
    vision_heads: int | None,
    vision_mlp: int | None,
) -> None:
    """Can a model of these sizes be divided? What is None is not looked at. `groups` are key-value
    heads, `vision_mlp` is the inner width of the ViT's MLP.

    Raises:
        ConfigError: it cannot.
    """
    tp, pp = run.trainer.tensor_parallel_size, run.trainer.pipeline_parallel_size
    for what, count, by in (
        ("attention heads", heads, tp),
        ("key-value heads", groups, tp),
        ("vision heads", vision_heads, tp),
        # Qwen2.5-VL has 3420, which is not divisible by 8
        ("channels of the vision MLP", vision_mlp, tp),
        ("layers", layers, pp),
    ):
        if count and count % by:
            name = "PP_SIZE" if what == "layers" else "TP_SIZE"
            raise ConfigError(f"{name}={by} does not divide the model's {count} {what}: lower it")
    cp = run.trainer.context_parallel_size
    if cp > 1 and heads and groups:
        # context-parallel ranks divide the heads among them; few key-value heads go to several
        fault = None
        if heads // tp % cp:
            fault = f"{heads // tp} attention heads"
        elif groups // tp % cp and cp % (groups // tp):
            fault = f"{groups // tp} key-value heads"
        if fault:
            raise ConfigError(
                f"CP_SIZE={cp} does not divide the model's {fault} of a tensor-parallel rank: set "
                "CP_SIZE to a divisor of them, or change TP_SIZE"
            )


def check_layout(run: RunConfig, world_size: int) -> Division:
    """Parallel sizes and batch sizes; see `check_run`."""
    trainer = run.trainer
    tp, pp, cp = (
        trainer.tensor_parallel_size,
        trainer.pipeline_parallel_size,
        trainer.context_parallel_size,
    )
    for name, value in (
        ("MBS (trainer.micro_batch_size)", trainer.micro_batch_size),
        ("GBS (trainer.global_batch_size)", trainer.global_batch_size),
        ("TP_SIZE (trainer.tensor_parallel_size)", tp),
        ("PP_SIZE (trainer.pipeline_parallel_size)", pp),
        ("CP_SIZE (trainer.context_parallel_size)", cp),
        ("trainer.max_steps", trainer.max_steps),
        ("trainer.log_every", trainer.log_every),
        ("trainer.keep_last", trainer.keep_last),
        ("data.seq_length", run.data.seq_length),
    ):
        if value < 1:
            raise ConfigError(f"{name} is {value}; expected at least 1")
    model_parallel = tp * pp * cp
    sizes = f"TP_SIZE={tp} × PP_SIZE={pp}" + (f" × CP_SIZE={cp}" if cp > 1 else "")
    if model_parallel > world_size:
        raise ConfigError(
            f"{sizes} = {model_parallel} needs {model_parallel} processes, but there are "
            f"{world_size}: lower them or raise DEVICES"
        )
    if world_size % model_parallel:
        raise ConfigError(
            f"{world_size} processes cannot be divided into model replicas of {sizes} = "
            f"{model_parallel}"
        )
    dp = world_size // model_parallel
    unit = trainer.micro_batch_size * dp
    if trainer.global_batch_size % unit:
        lower = trainer.global_batch_size // unit * unit
        options = [str(n) for n in (lower, lower + unit) if n]
        raise ConfigError(
            f"GBS={trainer.global_batch_size} is not divisible by MBS={trainer.micro_batch_size} × "
            f"{dp} data-parallel ranks = {unit}: set GBS={' or '.join(options)}"
        )
    check_packing(run)
    check_parts(run)
    check_guards(run)
    if trainer.sequence_parallel and tp == 1:
        raise ConfigError("trainer.sequence_parallel needs TP_SIZE > 1")
    return Division(
        world_size=world_size,
        data_parallel_size=dp,
        num_micro_batches=trainer.global_batch_size // unit,
    )


def check_guards(run: RunConfig) -> None:
    """What is kept, and what is done about bad steps; see `check_run`."""
    trainer = run.trainer
    if trainer.on_bad_loss not in ("stop", "skip", "ignore"):
        raise ConfigError(
            f"trainer.on_bad_loss={trainer.on_bad_loss!r}; expected stop, skip or ignore"
        )
    if trainer.spike_factor and trainer.spike_factor <= 1:
        raise ConfigError(
            f"trainer.spike_factor={trainer.spike_factor:g} calls ordinary losses spikes; expected "
            "more than 1 (3, say), or 0 for none"
        )
    if trainer.keep_best < 0:
        raise ConfigError(f"trainer.keep_best is {trainer.keep_best}; expected 0 or more")
    if trainer.keep_best and (
        trainer.save_every < 1 or not trainer.val_every or trainer.val_every % trainer.save_every
    ):
        raise ConfigError(
            f"trainer.keep_best={trainer.keep_best} needs a checkpoint at every validation: "
            f"trainer.val_every={trainer.val_every} must be a multiple of "
            f"trainer.save_every={trainer.save_every}"
        )


def check_packing(run: RunConfig) -> None:
    """Bounds of packs; see `check_run`."""
    data = run.data
    if not data.packing:
        return
    for name, value in (
        ("data.packing_buffer_size", data.packing_buffer_size),
        ("data.max_patches_per_pack", data.max_patches_per_pack),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; expected at least 1")


def check_parts(run: RunConfig) -> None:
    """Do rows of a fixed length divide into the parts of ranks? See `check_run`."""
    trainer, length = run.trainer, run.data.seq_length
    if not run.data.packing and trainer.pipeline_parallel_size == 1:
        return  # rows are padded to a length that does
    tp = trainer.tensor_parallel_size if trainer.sequence_parallel else 1
    parts = tp * trainer.context_parallel_size
    if length % parts:
        why = [f"TP_SIZE={tp} parts, as trainer.sequence_parallel needs"] if tp > 1 else []
        if trainer.context_parallel_size > 1:
            why.append(f"CP_SIZE={trainer.context_parallel_size} parts")
        raise ConfigError(
            f"data.seq_length={length} does not divide into {' times '.join(why)}: set it to "
            f"{length // parts * parts}"
        )


#: key → smallest value; null, where a key may be null, is left alone
_LEAST = {
    "seed": 0,
    "data.num_workers": 0,
    "data.shuffle_buffer_size": 0,
    "data.max_samples_per_sequence": 1,
    "data.worker_timeout_s": 0,
    "data.max_rejects_in_a_row": 1,
    "trainer.val_every": 0,
    "trainer.val_batches": 0,
    "trainer.save_every": -1,
    "trainer.stop_at_step": 1,
    "trainer.stall_warning_s": 0,
    "trainer.spike_factor": 0,
    "optim.lr": 0,
    "optim.min_lr": 0,
    "optim.warmup_steps": 0,
    "optim.weight_decay": 0,
    "optim.adam_beta1": 0,
    "optim.adam_beta2": 0,
    "optim.clip_grad": 0,
}


def check_bounds(run: RunConfig) -> None:
    """Names and numbers that mean nothing; parallel and batch sizes have checks of their own.

    Raises:
        ConfigError: the first of them.
    """
    for key in ("experiment_name", "log_dir"):
        if not attrgetter(key)(run).strip():
            raise ConfigError(f"{key} is empty: the run's folder is LOG_DIR/experiment_name")
    for key, least in _LEAST.items():
        value = attrgetter(key)(run)
        if value is not None and not (least <= value and math.isfinite(value)):
            raise ConfigError(f"{key} is {value}; expected at least {least}")
    optim = run.optim
    for key in ("adam_beta1", "adam_beta2"):
        if getattr(optim, key) >= 1:
            raise ConfigError(f"optim.{key} is {getattr(optim, key)}; expected less than 1")
    if optim.min_lr > optim.lr:
        raise ConfigError(
            f"optim.min_lr={optim.min_lr:g}, where the schedule ends, is more than "
            f"optim.lr={optim.lr:g}: the rate would rise; set it to {optim.lr / 10:g}, say"
        )
