"""Qwen2-VL and Qwen2.5-VL: NeMo's modules, fed with cells and explicit positions.

Shape legend: N cells, E ViT width, M visual tokens (N / 4 out of the tower), B rows, S sequence,
D head size, H language width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import MultimodalRotaryEmbedding
from megatron.core.models.common.vision_module.vision_module import VisionModule
from megatron.core.tensor_parallel import get_cuda_rng_tracker, scatter_to_sequence_parallel_region
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from nemo.collections.vlm.qwen2vl.model.base import (
    MCoreQwen2VLModel,
    Qwen2VLConfig,
    Qwen2VLVisionConfig,
    Qwen25VLVisionConfig,
)
from nemo.collections.vlm.qwen2vl.model.vision import (
    Qwen2VisionModel,
    Qwen25VisionModel,
    VisionRotaryEmbedding,
)

from dct_tokenizer import VisualTokenizer, build_tokenizer
from dct_tokenizer.basis import Float32Buffers
from dct_tokenizer.windows import GROUP
from dct_vl.inputs.batch import Batch, VisualInputs
from dct_vl.inputs.chat import VISUAL_TOKEN_INDEX
from dct_vl.model.context_parallel import part_of_sequence
from dct_vl.model.kv_cache import SlotCache
from dct_vl.model.language_model import AnswerLossGPTModel
from dct_vl.model.layer_specs import expect_no_norm_state, without_norm_state
from dct_vl.model.parts import with_gradient


class _ExactFrequencies(Float32Buffers, VisionRotaryEmbedding):
    """VisionRotaryEmbedding whose frequencies stay float32 where the model becomes bf16, as those
    of transformers do: rounded to 8 bits, angles of large images are off by up to a tenth of a
    radian.
    """


class _CellInputs(VisionModule):
    """Qwen2VisionModel or Qwen25VisionModel whose patch embedding is a tokenizer's front end.

    Blocks, merging and parameter names are NeMo's. Position and segments of each cell come from
    the batch (they were planned by the tokenizer), not from a grid.
    """

    def __init__(self, *args: Any, tokenizer: VisualTokenizer, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.front_end = tokenizer.front_end(self.visual_hidden_size).to(self.conv1.weight)
        del self.conv1
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


class VisionTowerWithTokenizer(_CellInputs, Qwen2VisionModel):
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


class WindowedTowerWithTokenizer(_CellInputs, Qwen25VisionModel):
    """Qwen2.5-VL's tower: most layers attend within windows of segments.

    Windows are segments too once the cells stand in their order; NeMo's block hands each layer the
    ones or the others.
    """

    def forward(self, visual: VisualInputs) -> torch.Tensor:  # type: ignore[override]
        """See `VisionTowerWithTokenizer.forward`; windows are found where not given."""
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
class VisionTowerConfig(Qwen2VLVisionConfig):
    """Vision config that builds a `VisionTowerWithTokenizer`."""

    #: it attends without windows
    window_side: ClassVar[None] = None
    #: preset of the tokenizer: a flat mapping with `name`, `family` and the preset's keys
    tokenizer: dict[str, Any] = field(default_factory=lambda: {"name": "pixel"})

    def configure_model(self) -> VisionTowerWithTokenizer:
        return VisionTowerWithTokenizer(**_arguments(self))


@dataclass
class WindowedTowerConfig(Qwen25VLVisionConfig):
    """Vision config that builds a `WindowedTowerWithTokenizer`."""

    #: see `VisionTowerConfig`
    tokenizer: dict[str, Any] = field(default_factory=lambda: {"name": "pixel"})
    #: of a window, in units of the cells' positions
    window_side: int = 8

    def configure_model(self) -> WindowedTowerWithTokenizer:
        return WindowedTowerWithTokenizer(**_arguments(self))


def _arguments(config: VisionTowerConfig | WindowedTowerConfig) -> dict[str, Any]:
    spec: ModuleSpec | Callable[..., TransformerBlockSubmodules] = config.transformer_layer_spec
    handed_on = (
        "add_class_token class_token_len patch_dim temporal_patch_size spatial_merge_size "
        "spatial_patch_size img_h img_w"
    )
    return {
        "transformer_config": config,
        "transformer_layer_spec": spec if isinstance(spec, ModuleSpec) else spec(config),
        "tokenizer": build_tokenizer(config.tokenizer),
        **{name: getattr(config, name) for name in handed_on.split()},
    }


class MultimodalAngles(MultimodalRotaryEmbedding):
    """MultimodalRotaryEmbedding as plain numbers multiplied.

    Megatron, like transformers, multiplies ids and frequencies as matrices. Where TF32 is allowed,
    as NVIDIA's containers do by an environment variable, a GPU may round both to 11 bits for that:
    ids above 2048 fall together, and the angles of smaller ones are off by up to half a radian.
    Nor does this take a context-parallel rank's part of ids that are a part already.
    """

    def forward(self, position_ids: torch.Tensor, mrope_section: Sequence[int]) -> torch.Tensor:
        """Angles (S, B, 1, D) float32 of (3, B, S) temporal, row and column ids.

        `mrope_section`: how many of the D / 2 frequencies are for each of the three.
        """
        ids = position_ids.to(device=self.inv_freq.device, dtype=self.inv_freq.dtype)
        half = torch.cat(
            [
                kind[..., None] * frequencies
                for kind, frequencies in zip(
                    ids, self.inv_freq.split(list(mrope_section)), strict=True
                )
            ],
            dim=-1,
        )
        return torch.cat((half, half), dim=-1).transpose(0, 1)[:, :, None].contiguous()


class QwenVLWithVisualTokenizer(MCoreQwen2VLModel):
    """MCoreQwen2VLModel with a visual tokenizer.

    Everything that NeMo's forward derives from pixel grids (positions, segments, counts) is
    planned in the data loader and arrives with the batch.
    """

    def forward(  # type: ignore[override]
        self,
        batch: Batch,
        *,
        cache: SlotCache | None = None,
        runtime_gather_output: bool | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor | None]:
        """Run the stage of the model that lives on this pipeline rank.

        Args:
            batch: on this stage's device; a context-parallel rank gets the losses of its part of S.
            cache: keys and values of earlier tokens, while answers are generated.
            runtime_gather_output: gather logits over tensor-parallel ranks.

        Returns:
            Last stage with labels: per-token loss (B, S) and the loss mask; without: logits
            (B, S, vocabulary), or (answers, 1, vocabulary) where the batch has answer_indices.
            Other stages: hidden states (S, B, H).

        Raises:
            ValueError: the number of visual tokens in the batch is not that of their embeddings.
        """
        embeddings = None
        if self.pre_process:
            embeddings = with_gradient(self._embed(batch), self.language_model.decoder)
        output = self.language_model(
            embeddings,
            batch.position_ids,
            batch.segments if cache is None else cache,
            labels=batch.labels,
            answer_indices=batch.answer_indices,
            runtime_gather_output=runtime_gather_output,
        )
        return output if batch.labels is None else (output, batch.loss_mask)

    def _embed(self, batch: Batch) -> torch.Tensor:
        """Text embeddings with the visual ones in their places: this rank's part of (S, B, H)."""
        visual: torch.Tensor | None = None  # (M, H)
        if batch.visual is not None:
            visual = self.vision_projection(self.vision_model(batch.visual))
            if self.vision_model.post_merge is not None:
                visual = self.vision_model.post_merge(visual, batch.visual.grids)
        ids = batch.input_ids
        embeddings = self.language_model.embedding(
            input_ids=ids.masked_fill(ids == VISUAL_TOKEN_INDEX, 0), position_ids=None
        )  # (S, B, H)
        if batch.visual is not None and visual is not None:
            indices = batch.visual.token_indices
            embeddings = self._place(embeddings, visual.to(embeddings.dtype), indices)
        embeddings = part_of_sequence(embeddings, dim=0)
        if self.sequence_parallel_lm:
            embeddings = scatter_to_sequence_parallel_region(embeddings)
        return embeddings

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What is written to and read from checkpoints: the same names in every layer spec."""
        return without_norm_state(super().sharded_state_dict(*args, **kwargs))

    @staticmethod
    def _place(
        embeddings: torch.Tensor, visual: torch.Tensor, indices: torch.Tensor
    ) -> torch.Tensor:
        """Put visual embeddings (M, H) where `indices` (M,) say, in (B, S) row after row."""
        length, rows = embeddings.shape[:2]
        if visual.shape[0] > rows * length:
            raise ValueError(f"{visual.shape[0]} visual tokens for {rows * length} places")
        if indices.numel() == 0:
            # a batch of text only brings one blank image along, so that every parameter takes
            # part on every data-parallel rank; its gradient is zero
            return embeddings + 0.0 * visual.sum()
        if indices.numel() != visual.shape[0]:
            raise ValueError(
                f"{indices.numel()} visual tokens in input_ids but {visual.shape[0]} embeddings: "
                "the batch was not made with this model's tokenizer"
            )
        row = torch.div(indices, length, rounding_mode="floor")
        return embeddings.index_put((indices % length, row), visual)


@dataclass
class QwenVLConfig(Qwen2VLConfig):
    """Qwen2VLConfig that builds a `QwenVLWithVisualTokenizer`."""

    #: sections of the head dimension for temporal, row and column ids; NeMo forces the 2B's
    mrope_section: tuple[int, int, int] = (16, 24, 24)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.language_transformer_config is not None:
            self.language_transformer_config.mrope_section = list(self.mrope_section)

    def configure_model(
        self, tokenizer: object, vp_stage: int | None = None
    ) -> QwenVLWithVisualTokenizer:
        """Build this rank's stage exactly as NeMo does, then give it the tokenizer's forward."""
        if self.sequence_parallel and not torch.cuda.is_available():
            # the embedding's dropout would fork a CUDA generator, and there is none
            get_cuda_rng_tracker().fork = contextlib.nullcontext
        model = super().configure_model(tokenizer, vp_stage)
        # NeMo names its model class inside the method that also hands the parallel layout down to
        # the three sub-configurations; the subclass adds methods only, so adopting it is safe.
        model.__class__ = QwenVLWithVisualTokenizer
        model.language_model.__class__ = AnswerLossGPTModel
        model.language_model.rotary_pos_emb.__class__ = MultimodalAngles
        expect_no_norm_state(model)
        return model
