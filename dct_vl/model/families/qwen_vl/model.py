"""The Megatron module: NeMo's Qwen2-VL or Qwen2.5-VL fed with cells and explicit positions.

Shape legend: B micro batch, S sequence, M visual tokens, H language width.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    get_cuda_rng_tracker,
    scatter_to_sequence_parallel_region,
)
from nemo.collections.vlm.qwen2vl.model.base import MCoreQwen2VLModel, Qwen2VLConfig

from dct_vl.inputs.batch import Batch, VisualInputs
from dct_vl.inputs.plan_chat import VISUAL_TOKEN_INDEX
from dct_vl.model.context_parallel import part_of_sequence
from dct_vl.model.families.qwen_vl.rotary import MultimodalAngles
from dct_vl.model.fused.answer_loss import AnswerLossGPTModel
from dct_vl.model.kv_cache import KeyValueCache
from dct_vl.model.norm_state import expect_no_norm_state, without_norm_state
from dct_vl.model.recompute import with_gradient


class QwenVLWithVisualTokenizer(MCoreQwen2VLModel):
    """MCoreQwen2VLModel with a visual tokenizer.

    Everything that NeMo's forward derives from pixel grids (positions, segments, counts) is
    planned in the data loader and arrives with the batch.
    """

    def forward(  # type: ignore[override]
        self,
        batch: Batch,
        *,
        cache: KeyValueCache | None = None,
        runtime_gather_output: bool | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor | None]:
        """Run the stage of the model that lives on this pipeline rank.

        Args:
            batch: on this stage's device; a context-parallel rank gets the losses of its part of S.
            cache: keys and values of earlier tokens, while answers are generated; then rows are not
                packed.
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
        visual = None if batch.visual is None else self._encode(batch.visual)
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

    def _encode(self, visual: VisualInputs) -> torch.Tensor:
        """Embeddings of the language model's width, (M, H)."""
        merged = self.vision_projection(self.vision_model(visual))
        post_merge = self.vision_model.post_merge
        return merged if post_merge is None else post_merge(merged, visual.grids)

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
        """Undo NeMo's fixed M-RoPE sections where the model has others."""
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
