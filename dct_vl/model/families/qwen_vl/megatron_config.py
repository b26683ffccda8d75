"""Model configuration from a Hugging Face Qwen2-VL or Qwen2.5-VL folder's config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nemo.collections.llm.fn.activation import quick_gelu
from nemo.collections.llm.gpt.model.qwen2 import Qwen2Config
from nemo.collections.vlm.vision.base import MultimodalProjectorConfig

from dct_vl.model.families.qwen_vl.config import VisionSizes, read_hf_config, vision_sizes
from dct_vl.model.families.qwen_vl.model import QwenVLConfig, VisionTowerConfig, WindowedTowerConfig
from dct_vl.model.layer_specs import (
    LayerSpecName,
    block_with_torch_norm,
    language_spec,
    layer_spec,
    projector_submodules,
)


@dataclass
class ProjectorConfig(MultimodalProjectorConfig):
    """NeMo's projector config, built as a Megatron MLP in either layer spec.

    One structure for both specs keeps the checkpoint names equal.
    """

    def configure_model(self) -> torch.nn.Module:
        from megatron.core.models.vision.multimodal_projector import MultimodalProjector

        return MultimodalProjector(
            self, self.layer_spec, projector_type="mlp", input_size=self.input_size
        )


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What a run decides about the model beyond its folder."""

    layer_spec: LayerSpecName
    dtype: torch.dtype
    seq_length: int
    tokenizer: dict[str, Any]
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    context_parallel_size: int = 1
    sequence_parallel: bool = False
    #: elementwise parts of a layer in one kernel each (local layer spec)
    fused_layers: bool = False
    #: False leaves weights as the memory is, for what fills all of them
    draws_weights: bool = True
    #: compute every layer's activations again in the backward pass instead of keeping them
    recompute: bool = False


def model_config(folder: str | Path, options: ModelOptions) -> QwenVLConfig:
    """NeMo configuration of the model in `folder` with a tokenizer and a parallel layout."""
    hf = read_hf_config(folder)
    vision = vision_sizes(hf)
    half = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(options.dtype)
    on_cuda = torch.cuda.is_available()
    shared: dict[str, Any] = {
        "params_dtype": options.dtype,
        "pipeline_dtype": options.dtype,
        "bf16": half == "bf16",
        "fp16": half == "fp16",
        "init_method_std": hf.initializer_range,
        "use_cpu_initialization": not on_cuda,
        "perform_initialization": options.draws_weights,
        "gradient_accumulation_fusion": False,
        "masked_softmax_fusion": False,
        "bias_dropout_fusion": on_cuda,
        "bias_activation_fusion": False,
        "apply_rope_fusion": False,
        "persist_layer_norm": False,
        # the loss is a mean over the answer tokens of the global batch, whatever the layout
        "calculate_per_token_loss": True,
        "tensor_model_parallel_size": options.tensor_model_parallel_size,
    }
    layers: dict[str, Any] = shared | (
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
        if options.recompute
        else {}
    )
    language = Qwen2Config(
        num_layers=hf.num_hidden_layers,
        hidden_size=hf.hidden_size,
        ffn_hidden_size=hf.intermediate_size,
        num_attention_heads=hf.num_attention_heads,
        num_query_groups=hf.num_key_value_heads,
        layernorm_epsilon=hf.rms_norm_eps,
        rotary_base=hf.rope_theta,
        vocab_size=hf.vocab_size,
        share_embeddings_and_output_weights=hf.tie_word_embeddings,
        seq_length=options.seq_length,
        cross_entropy_loss_fusion=False,
        transformer_layer_spec=language_spec(options.layer_spec, fused=options.fused_layers),
        **layers,
    )
    merged = vision.width * vision.merge_size**2
    projector = ProjectorConfig(
        projector_type="mlp",
        layer_spec=projector_submodules(options.layer_spec),
        input_size=merged,
        hidden_size=vision.out_width,
        ffn_hidden_size=merged,
        add_bias_linear=True,
        **shared,
    )
    return QwenVLConfig(
        language_transformer_config=language,
        vision_transformer_config=_vision_config(vision, options, layers),
        vision_projection_config=projector,
        mrope_section=tuple(hf.rope_scaling["mrope_section"]),
        seq_length=options.seq_length,
        pipeline_model_parallel_size=options.pipeline_model_parallel_size,
        context_parallel_size=options.context_parallel_size,
        sequence_parallel=options.sequence_parallel,
        **shared,
    )


def _vision_config(
    vision: VisionSizes, options: ModelOptions, layers: dict[str, Any]
) -> VisionTowerConfig | WindowedTowerConfig:
    spec = layer_spec(options.layer_spec, is_vision=True, fused=options.fused_layers)
    sizes: dict[str, Any] = {
        "num_layers": vision.layers,
        "num_attention_heads": vision.heads,
        "num_query_groups": vision.heads,
        "kv_channels": vision.width // vision.heads,
        "embed_dim": vision.width,
        "hidden_size": vision.width,
        "ffn_hidden_size": vision.mlp,
        "patch_dim": vision.patch_size,
        "spatial_patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "spatial_merge_size": vision.merge_size,
        "tokenizer": options.tokenizer,
        **layers,
    }
    if vision.window is None:
        return VisionTowerConfig(**sizes, activation_func=quick_gelu, transformer_layer_spec=spec)
    return WindowedTowerConfig(
        **sizes,
        window_side=vision.window,
        fullatt_block_indexes=list(vision.full_layers),
        # an RMS norm at the block's end, whatever is installed
        transformer_layer_spec=spec if options.layer_spec == "te" else block_with_torch_norm(spec),
    )
