"""The parts of a run, made from its configuration: tokenizer, model, optimizer, data."""

from __future__ import annotations

from typing import Any

import torch

from dct_vl.compat import activate

activate()

from megatron.core.optimizer import OptimizerConfig  # noqa: E402

from dct_vl.inputs.chat import read_chat_tokenizer  # noqa: E402
from dct_vl.inputs.encode import InputSpec  # noqa: E402
from dct_vl.inputs.rejects import RejectLog  # noqa: E402
from dct_vl.model.families.qwen_vl.config import read_hf_config, vision_sizes  # noqa: E402
from dct_vl.model.families.qwen_vl.megatron_config import ModelOptions, model_config  # noqa: E402
from dct_vl.model.layer_specs import resolve_layer_spec  # noqa: E402
from dct_vl.runs.config.schema import RunConfig  # noqa: E402
from dct_vl.runs.config.tuning import rate_multipliers, trained_parts  # noqa: E402
from dct_vl.runs.derived import RunSettings  # noqa: E402
from dct_vl.runs.run_files import run_dir  # noqa: E402
from dct_vl.training.data.module import ChatDataModule  # noqa: E402
from dct_vl.training.data.task_encoder import ChatPackEncoder, ChatTaskEncoder  # noqa: E402
from dct_vl.training.module import QwenVLModule  # noqa: E402
from dct_vl.training.optim.optimizer import PartOptimizer, RunLongCosine  # noqa: E402
from dct_vl.training.optim.speed import resolve_speed  # noqa: E402


def build_model(run: RunConfig, *, load_weights: bool) -> QwenVLModule:
    """The Lightning module with its optimizer, not yet built on any device."""
    trainer, settings = run.trainer, RunSettings(run)
    speed = resolve_speed(run.speed)
    options = ModelOptions(
        layer_spec=resolve_layer_spec(run.model.layer_spec),
        dtype=settings.dtype,
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
    return QwenVLModule(
        config,
        hf_folder=run.model.path if load_weights else None,
        optim=build_optimizer(run),
        trained=trained_parts(run.model),
        lora=settings.lora,
        seed=run.seed,
        answer_loss=speed.answer_loss,
    )


def build_optimizer(run: RunConfig) -> PartOptimizer:
    """Megatron's AdamW with a cosine schedule and a rate for each part."""
    dtype = RunSettings(run).dtype
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


def build_data(run: RunConfig) -> ChatDataModule:
    """The Energon data module."""
    settings = RunSettings(run)
    inputs = InputSpec(
        chat=read_chat_tokenizer(run.model.path),
        visual=settings.visual,
        seq_length=run.data.seq_length,
        video=settings.video_rules,
        ids_per_second=vision_sizes(read_hf_config(run.model.path)).ids_per_second,
    )

    def options(rejects: str) -> dict[str, Any]:
        return {
            "inputs": inputs,
            "rejects": RejectLog(
                run_dir(run) / rejects, run.data.path, run.data.max_rejects_in_a_row
            ),
        }

    def padding_encoder(rejects: str) -> ChatTaskEncoder:
        return ChatTaskEncoder(
            **options(rejects),
            # pipeline stages exchange activations of one fixed shape
            pad_to=run.data.seq_length if run.trainer.pipeline_parallel_size > 1 else None,
            pad_multiple=settings.row_multiple,
        )

    return ChatDataModule(
        run,
        task_encoder=ChatPackEncoder(
            **options("rejects"), max_patches=settings.max_patches_per_pack
        )
        if run.data.packing
        else padding_encoder("rejects"),
        validation_task_encoder=padding_encoder("rejects_val"),
    )
