"""NeMo's stock Qwen2-VL for train_step_nemo.py, which imports this.

Nothing of it is changed but the stream of its DDP (`dct_vl.compat.nemo`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import nemo.lightning as nl
import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from nemo.lightning.pytorch.optim import MegatronOptimizerModule

from dct_vl.compat import have_transformer_engine
from dct_vl.inputs.chat import VISUAL_TOKEN_INDEX


def stock_length(case: dict[str, Any]) -> int:
    """Tokens of a row."""
    return int(case["text"] + case["grid"] ** 2 // 4 + 2)


def run_stock(case: dict[str, Any], times: pl.Callback, data: Any) -> dict[str, Any]:
    """NeMo's stock Qwen2-VL: its layer spec with Transformer Engine, Megatron's local one without.

    Position ids are handed in, as its data module would compute them on the host; its own forward
    step would compute them on the device in every step.
    """
    from nemo.collections.llm.gpt.model.qwen2 import Qwen2Config
    from nemo.collections.vlm.qwen2vl.model.base import (
        Qwen2VLConfig,
        Qwen2VLModel,
        Qwen2VLVisionConfig,
    )
    from nemo.collections.vlm.vision.base import MultimodalProjectorConfig

    @dataclass
    class SizedConfig(Qwen2VLConfig):
        """NeMo fixes the sections of the published sizes; the tiny shape has others."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.language_transformer_config.mrope_section = list(
                case["text_config"]["mrope_section"]
            )

    has_te = have_transformer_engine()
    on_cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_cuda else torch.float32
    common: dict[str, Any] = {
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": on_cuda,
        "use_cpu_initialization": not on_cuda,
        "gradient_accumulation_fusion": False,
        "masked_softmax_fusion": False,
        "bias_dropout_fusion": on_cuda,
        "bias_activation_fusion": False,
        "apply_rope_fusion": False,
    }
    specs: list[Any] = [None, None]
    if not has_te:
        common["persist_layer_norm"] = False
        specs = [plain_spec(is_vision=False), plain_spec(is_vision=True)]
    text, vision = case["text_config"], case["vision_config"]
    length = stock_length(case)
    language_options = {} if specs[0] is None else {"transformer_layer_spec": specs[0]}
    language = Qwen2Config(
        num_layers=text["num_hidden_layers"],
        hidden_size=text["hidden_size"],
        ffn_hidden_size=text["intermediate_size"],
        num_attention_heads=text["num_attention_heads"],
        num_query_groups=text["num_key_value_heads"],
        rotary_base=text["rope_theta"],
        vocab_size=text["vocab_size"],
        share_embeddings_and_output_weights=True,
        seq_length=length,
        **language_options,
        **common,
    )
    width = vision["embed_dim"]
    merged = 4 * width
    vit = Qwen2VLVisionConfig(
        num_layers=vision["depth"],
        num_attention_heads=vision["num_heads"],
        num_query_groups=vision["num_heads"],
        kv_channels=width // vision["num_heads"],
        embed_dim=width,
        hidden_size=width,
        ffn_hidden_size=int(width * vision["mlp_ratio"]),
        transformer_layer_spec=specs[1],
        **common,
    )
    projector = MultimodalProjectorConfig(
        projector_type="mcore_mlp" if has_te else "mlp2x_gelu",
        input_size=merged,
        hidden_size=text["hidden_size"],
        ffn_hidden_size=merged,
        **common,
    )
    config = SizedConfig(
        language_transformer_config=language,
        vision_transformer_config=vit,
        vision_projection_config=projector,
        seq_length=length,
        calculate_per_token_loss=True,
        **common,
    )
    config.cross_entropy_loss_fusion = False
    config.data_step_fn = data_step
    config.forward_step_fn = lambda model, batch: model(**batch)

    class Vocabulary:
        vocab_size = text["vocab_size"]

    optimizer = MegatronOptimizerModule(
        OptimizerConfig(
            optimizer="adam",
            lr=1e-5,
            bf16=on_cuda,
            params_dtype=dtype,
            use_distributed_optimizer=on_cuda,
        )
    )
    model = Qwen2VLModel(config, model_version="qwen2-vl", optim=optimizer, tokenizer=Vocabulary())
    trainer = nl.Trainer(
        accelerator="gpu" if on_cuda else "cpu",
        devices=1,
        max_steps=case["warmup"] + case["steps"],
        strategy=nl.MegatronStrategy(
            pipeline_dtype=dtype,
            ddp=DistributedDataParallelConfig(
                use_distributed_optimizer=on_cuda,
                grad_reduce_in_fp32=on_cuda,
                overlap_grad_reduce=False,
            ),
            gradient_as_bucket_view=True,
            replace_progress_bar=False,
        ),
        plugins=nl.MegatronMixedPrecision(precision="bf16-mixed" if on_cuda else "32"),
        callbacks=[times],
        logger=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(model, data)
    return {"layer_spec": "te" if has_te else "local"}


def data_step(iterator: Iterator[Any], _: str) -> dict[str, Any]:
    """The next batch on the device."""
    batch = next(iterator)
    batch = batch[0] if isinstance(batch, tuple) else batch
    return {name: value.cuda(non_blocking=True) for name, value in batch.items()}


def stock_batch(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The fields that NeMo's task encoder makes, for the rows of train_step_nemo.py."""
    side, rows = case["grid"], case["images"]
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    num_visual = side * side // 4
    before, after = case["text"] // 4 + 1, case["text"] - case["text"] // 4 + 1
    ids = torch.randint(10, case["max_text_id"], (rows, before + num_visual + after))
    ids[:, before : before + num_visual] = VISUAL_TOKEN_INDEX
    grid = torch.cartesian_prod(torch.arange(1), torch.arange(side // 2), torch.arange(side // 2))
    tail = torch.arange(before + side // 2, before + side // 2 + after)
    positions = torch.cat(
        (torch.arange(before).expand(3, -1), grid.T + before, tail.expand(3, -1)), dim=1
    )
    return {
        "input_ids": ids,
        "labels": ids.roll(-1, 1).clamp(min=0),
        "loss_mask": ((ids != VISUAL_TOKEN_INDEX) | (case["loss_on"] != "text")).float(),
        "position_ids": positions[:, None].expand(-1, rows, -1).contiguous(),
        "pixel_values": torch.randn(rows * side * side, 1176, dtype=dtype).pin_memory(),
        "image_grid_thw": torch.tensor([[1, side, side]] * rows),
    }


def plain_spec(*, is_vision: bool) -> Any:
    """Megatron's local layers with an attention that takes NeMo's packed parameters."""
    from megatron.core.transformer.attention import SelfAttention

    from dct_vl.inputs.batch import Segments
    from dct_vl.model.attention import SegmentedAttention
    from dct_vl.model.layer_specs import layer_spec

    class PackedParamsAttention(SegmentedAttention):
        def forward(self, query: Any, key: Any, value: Any, *args: Any, **options: Any) -> Any:
            packed = options.pop("packed_seq_params", None)
            if packed is None:
                return super().forward(query, key, value)
            query, key, value = (x.reshape(-1, 1, *x.shape[-2:]) for x in (query, key, value))
            segments = Segments(
                cu_seqlens=packed.cu_seqlens_q.to(torch.int32), longest=int(packed.max_seqlen_q)
            )
            return super().forward(query, key, value, attention_bias=segments)[:, 0]

    spec = layer_spec("local", is_vision=is_vision)
    spec.submodules.self_attention.module = SelfAttention
    spec.submodules.self_attention.submodules.core_attention = PackedParamsAttention
    return spec
