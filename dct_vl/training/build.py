"""The parts of a run, made from its configuration: tokenizer, model, optimizer, data."""

from __future__ import annotations

from typing import Any

import torch

from dct_vl.compat import activate

activate()

from megatron.core.optimizer import OptimizerConfig  # noqa: E402

from dct_tokenizer import VisualTokenizer, build_tokenizer  # noqa: E402
from dct_vl.inputs.chat import ChatTokenizer  # noqa: E402
from dct_vl.inputs.rejects import RejectLog  # noqa: E402
from dct_vl.inputs.text_tokenizer import read_text_tokenizer  # noqa: E402
from dct_vl.model.families.qwen_vl.config import read_hf_config, vision_sizes  # noqa: E402
from dct_vl.model.families.qwen_vl.megatron_config import ModelOptions, model_config  # noqa: E402
from dct_vl.model.layer_specs import resolve_layer_spec  # noqa: E402
from dct_vl.runs.config.overrides import ConfigError  # noqa: E402
from dct_vl.runs.config.schema import RunConfig  # noqa: E402
from dct_vl.runs.config.tuning import rate_multipliers, trained_parts  # noqa: E402
from dct_vl.runs.config.video import video_rules  # noqa: E402
from dct_vl.runs.run_files import run_dir  # noqa: E402
from dct_vl.training.data.module import ChatDataModule  # noqa: E402
from dct_vl.training.data.pack_encoder import ChatPackEncoder  # noqa: E402
from dct_vl.training.data.task_encoder import ChatTaskEncoder  # noqa: E402
from dct_vl.training.module import TokenizerQwen2VLModel  # noqa: E402
from dct_vl.training.optim.param_groups import PartOptimizer  # noqa: E402
from dct_vl.training.optim.schedule import RunLongCosine  # noqa: E402
from dct_vl.training.optim.speed import resolve_speed  # noqa: E402
from dct_vl.training.restart.resume import max_patches_per_pack  # noqa: E402


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
    chat = ChatTokenizer(read_text_tokenizer(run.model.path))
    ids_per_second = vision_sizes(read_hf_config(run.model.path)).ids_per_second
    trainer = run.trainer

    def options(rejects: str) -> dict[str, Any]:
        return {
            "chat": chat,
            "visual": visual,
            "video": video_rules(run.data),
            "ids_per_second": ids_per_second,
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
            pad_multiple=8 * trainer.tensor_parallel_size * trainer.context_parallel_size,
        )

    return ChatDataModule(
        run,
        task_encoder=ChatPackEncoder(**options("rejects"), max_patches=max_patches_per_pack(run))
        if run.data.packing
        else padding_encoder("rejects"),
        validation_task_encoder=padding_encoder("rejects_val"),
    )
