"""NeMo's vision towers of Qwen2-VL and Qwen2.5-VL with the front end of a visual tokenizer.

Shape legend: N cells, E ViT width, M LLM tokens (N / 4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.models.common.vision_module.vision_module import VisionModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from nemo.collections.vlm.qwen2vl.model.base import Qwen2VLVisionConfig, Qwen25VLVisionConfig
from nemo.collections.vlm.qwen2vl.model.vision import (
    Qwen2VisionModel,
    Qwen25VisionModel,
    VisionRotaryEmbedding,
)

from dct_tokenizer import VisualTokenizer, build_tokenizer
from dct_tokenizer.basis import Float32Buffers
from dct_tokenizer.windows import GROUP
from dct_vl.inputs.batch import VisualInputs
from dct_vl.model.recompute import with_gradient


class _ExactFrequencies(Float32Buffers, VisionRotaryEmbedding):
    """VisionRotaryEmbedding whose frequencies stay float32 where the model becomes bf16, as those
    of transformers do: rounded to 8 bits, angles of large pictures are off by up to a tenth of a
    radian.
    """


class _CellInputs(VisionModule):
    """Qwen2VisionModel or Qwen25VisionModel whose patch embedding is a tokenizer's front end.

    Blocks, merging and parameter names are NeMo's. Position and segments of each cell come from
    the batch (they were planned by the tokenizer), not from a grid.
    """

    def __init__(self, *args: Any, tokenizer: VisualTokenizer, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        dtype = self.conv1.weight.dtype
        device = self.conv1.weight.device
        del self.conv1
        self.front_end = tokenizer.front_end(self.visual_hidden_size).to(device=device, dtype=dtype)
        #: what some tokenizers do with the projected tokens; None for most
        self.post_merge = tokenizer.post_merge()
        # of the same state; the class is NeMo's but for what a change of dtype does
        self.rotary_pos_emb.__class__ = _ExactFrequencies

    def _rotary(self, positions: torch.Tensor) -> torch.Tensor:
        """(N, 2, head_dim / 4) → (N, head_dim / 2), twice for the rotated halves, as Qwen2-VL
        does: (N, 1, 1, head_dim).
        """
        angles = positions.to(torch.float32)[:, :, None] * self.rotary_pos_emb.inv_freq
        angles = angles.flatten(1)
        return torch.cat((angles, angles), dim=-1)[:, None, None, :]


class TokenizerVisionModel(_CellInputs, Qwen2VisionModel):
    """Qwen2-VL's tower: every layer attends within segments."""

    def forward(self, visual: VisualInputs) -> torch.Tensor:  # type: ignore[override]
        """Embed and encode cells: (M, 4 E), merged and ready for the projector."""
        hidden = with_gradient(self.front_end(visual.cells).unsqueeze(1), self.decoder)
        hidden = self.decoder(
            hidden,
            None,
            rotary_pos_emb=self._rotary(visual.positions),
            packed_seq_params=visual.segments,
        )
        return hidden.squeeze(1).view(-1, self.merge_hidden_size)


class WindowedVisionModel(_CellInputs, Qwen25VisionModel):
    """Qwen2.5-VL's tower: most layers attend within windows of segments.

    Windows are segments too once the cells stand in their order; NeMo's block hands each layer the
    ones or the others.
    """

    def forward(self, visual: VisualInputs) -> torch.Tensor:  # type: ignore[override]
        """See `TokenizerVisionModel.forward`; windows are looked for where they are not given."""
        windows = visual.windows or visual.with_windows(self.config.window_side).windows
        assert windows is not None
        cells, positions = (
            x.view(-1, GROUP, *x.shape[1:])[windows.order].flatten(0, 1)
            for x in (visual.cells, visual.positions)
        )
        hidden = self.decoder(
            with_gradient(self.front_end(cells).unsqueeze(1), self.decoder),
            None,
            rotary_pos_emb=self._rotary(positions),
            packed_seq_params=windows.segments,
            packed_seq_params_full=visual.segments,
        )
        merged = hidden.squeeze(1).view(-1, self.merge_hidden_size)
        return merged[windows.order.argsort()]


@dataclass
class TokenizerVisionConfig(Qwen2VLVisionConfig):
    """Vision config that builds a `TokenizerVisionModel`."""

    #: preset of the tokenizer: a flat mapping with `name`, `family` and the preset's keys
    tokenizer: dict[str, Any] = field(default_factory=lambda: {"name": "pixel"})

    def configure_model(self) -> TokenizerVisionModel:
        """Build the vision tower; `transformer_layer_spec` must be set."""
        return TokenizerVisionModel(**_arguments(self))


@dataclass
class WindowedVisionConfig(Qwen25VLVisionConfig):
    """Vision config that builds a `WindowedVisionModel`."""

    #: see `TokenizerVisionConfig`
    tokenizer: dict[str, Any] = field(default_factory=lambda: {"name": "pixel"})
    #: of a window, in units of the cells' positions
    window_side: int = 8

    def configure_model(self) -> WindowedVisionModel:
        """Build the vision tower; `transformer_layer_spec` must be set."""
        return WindowedVisionModel(**_arguments(self))


def _arguments(config: TokenizerVisionConfig | WindowedVisionConfig) -> dict[str, Any]:
    spec: ModuleSpec | Callable[..., TransformerBlockSubmodules] = config.transformer_layer_spec
    return {
        "transformer_config": config,
        "transformer_layer_spec": spec if isinstance(spec, ModuleSpec) else spec(config),
        "add_class_token": config.add_class_token,
        "class_token_len": config.class_token_len,
        "patch_dim": config.patch_dim,
        "temporal_patch_size": config.temporal_patch_size,
        "spatial_merge_size": config.spatial_merge_size,
        "spatial_patch_size": config.spatial_patch_size,
        "img_h": config.img_h,
        "img_w": config.img_w,
        "tokenizer": build_tokenizer(config.tokenizer),
    }
