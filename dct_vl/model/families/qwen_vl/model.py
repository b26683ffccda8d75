"""The Megatron module: NeMo's Qwen2-VL or Qwen2.5-VL fed with cells and explicit positions.

Shape legend: B micro batch, S sequence, N cells, M LLM visual tokens, H language width.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state as ps
from megatron.core.tensor_parallel import (
    get_cuda_rng_tracker,
    scatter_to_sequence_parallel_region,
)
from nemo.collections.vlm.qwen2vl.model.base import MCoreQwen2VLModel, Qwen2VLConfig

from dct_vl.model.context_parallel import part_of_sequence
from dct_vl.model.families.qwen_vl.rotary import MultimodalAngles
from dct_vl.model.families.qwen_vl.tower import Windows
from dct_vl.model.fused.answer_loss import AnswerLossGPTModel
from dct_vl.model.norm_state import expect_no_norm_state, without_norm_state
from dct_vl.model.recompute import with_gradient

#: what stands in `input_ids` where a visual embedding goes (NeMo's convention for images)
VISUAL_TOKEN_INDEX = -200


class TokenizerQwen2VL(MCoreQwen2VLModel):
    """MCoreQwen2VLModel with a visual tokenizer.

    Everything that NeMo's forward derives from pixel grids (positions, segments, counts) is
    planned in the data loader and arrives with the batch.
    """

    #: the longest segment of a pack so far, in tokens
    longest_text_segment: int = 0

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None,
        position_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        loss_mask: torch.Tensor | None = None,
        cells: torch.Tensor | None = None,
        vit_positions: torch.Tensor | None = None,
        vit_cu_seqlens: torch.Tensor | None = None,
        vit_grids: torch.Tensor | None = None,
        longest_segment: int | None = None,
        vit_window_order: torch.Tensor | None = None,
        vit_window_cu_seqlens: torch.Tensor | None = None,
        longest_window: int | None = None,
        text_cu_seqlens: torch.Tensor | None = None,
        longest_text_segment: int | None = None,
        visual: torch.Tensor | None = None,
        visual_places: torch.Tensor | None = None,
        answer_positions: torch.Tensor | None = None,
        runtime_gather_output: bool | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor | None]:
        """Run the stage of the model that lives on this pipeline rank.

        Args:
            input_ids: (B, S) int64 with `VISUAL_TOKEN_INDEX` at visual tokens; first stage only.
            position_ids: (3, B, S) int64 M-RoPE ids (temporal, row, column); of them, labels and
                loss_mask a context-parallel rank gets its part of S, and gives the losses of these.
            labels: (B, S) int64, already shifted; last stage only.
            loss_mask: (B, S) float; last stage only.
            cells: (N, T, 3, B, B) uint8 of all samples in order; first stage only.
            vit_positions: (N, 2) float32; first stage only.
            vit_cu_seqlens: (segments + 1,) int32; first stage only.
            vit_grids: (pictures, 3) int64, ViT grids in cells; first stage only.
            longest_segment: the longest of the segments in cells, if known.
            vit_window_order: (M,) int64; with the next two the parts of a
                `Windows` of the tower. Qwen2.5-VL looks for windows without them, which waits
                for the device.
            vit_window_cu_seqlens: (windows + 1,) int32.
            longest_window: in cells.
            text_cu_seqlens: (samples + 1,) int32 boundaries of the samples in packed rows, over
                B*S places, row after row; every stage. None where each row is one sample.
            longest_text_segment: the longest of those segments in tokens, if known.
            visual: (M, H) what `encode_cells` gave, instead of the four fields before it.
            visual_places: (M,) int64, where in (B, S), row after row, the visual tokens are;
                without them the device is asked, which waits for it.
            answer_positions: (answers,) int64, likewise for the tokens with loss: logits are made
                for these only, and all other losses are 0. None computes every loss. Without
                labels, the tokens whose logits are wanted.
            runtime_gather_output: gather logits over tensor-parallel ranks.

        Returns:
            Last stage with labels: per-token loss (B, S) and the loss mask; without: logits
            (B, S, vocabulary), or (answers, 1, vocabulary). Other stages: hidden states (S, B, H).

        Raises:
            ValueError: the number of visual tokens in `input_ids` is not the number planned.
        """
        if text_cu_seqlens is not None:
            parts = ps.get_context_parallel_world_size()
            self._note_longest(longest_text_segment or parts * position_ids.shape[-1])
        decoder_input = None
        if self.pre_process:
            assert input_ids is not None
            if visual is None and cells is not None:
                assert vit_positions is not None
                assert vit_cu_seqlens is not None
                windows = None
                if vit_window_order is not None:
                    assert vit_window_cu_seqlens is not None
                    windows = Windows(
                        vit_window_order, vit_window_cu_seqlens, longest_window or len(cells)
                    )
                visual = self.encode_cells(
                    cells, vit_positions, vit_cu_seqlens, vit_grids, longest_segment, windows
                )
            decoder_input = with_gradient(
                self._embed(input_ids, visual, visual_places), self.language_model.decoder
            )
        self.language_model.answer_positions = answer_positions
        output = self.language_model(
            input_ids=None,
            position_ids=position_ids,
            # the boundaries of packs go where only the core attention looks, past the rotary
            # embedding, which takes the explicit ids
            attention_mask=text_cu_seqlens,
            decoder_input=decoder_input,
            labels=labels,
            runtime_gather_output=runtime_gather_output,
        )
        self.language_model.answer_positions = None
        return output if labels is None else (output, loss_mask)

    def _note_longest(self, longest: int) -> None:
        """Tell every attention the longest segment so far, so that none asks the device for it; a
        bound that only grows also holds for micro batches whose backward pass is still to come.
        """
        if longest > self.longest_text_segment:
            self.longest_text_segment = longest
            for layer in self.language_model.decoder.layers:
                layer.self_attention.core_attention.max_segment_length = longest

    def _embed(
        self,
        input_ids: torch.Tensor,
        visual: torch.Tensor | None,
        visual_places: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Text embeddings with the visual ones in their places: this rank's part of (S, B, H)."""
        is_visual = input_ids == VISUAL_TOKEN_INDEX
        embeddings = self.language_model.embedding(
            input_ids=input_ids.masked_fill(is_visual, 0), position_ids=None
        )  # (S, B, H)
        if visual is not None:
            embeddings = self._place(
                embeddings, visual.to(embeddings.dtype), is_visual, visual_places
            )
        embeddings = part_of_sequence(embeddings, dim=0)
        if self.sequence_parallel_lm:
            embeddings = scatter_to_sequence_parallel_region(embeddings)
        return embeddings

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What is written to and read from checkpoints: the same names in every layer spec."""
        return without_norm_state(super().sharded_state_dict(*args, **kwargs))

    def encode_cells(
        self,
        cells: torch.Tensor,
        positions: torch.Tensor,
        cu_seqlens: torch.Tensor,
        grids: torch.Tensor | None,
        longest_segment: int | None = None,
        windows: Windows | None = None,
    ) -> torch.Tensor:
        """Cells → embeddings of the language model's width, (M, H)."""
        merged = self.vision_projection(
            self.vision_model(cells, positions, cu_seqlens, longest_segment, windows)
        )
        post_merge = self.vision_model.post_merge
        return merged if post_merge is None else post_merge(merged, grids)

    @staticmethod
    def _place(
        embeddings: torch.Tensor,
        visual: torch.Tensor,
        is_visual: torch.Tensor,
        places: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Put visual embeddings (M, H) where `is_visual` (B, S) says, in row order.

        `places` (M,) are the same places counted row after row, if known.
        """
        batch_size, length = is_visual.shape
        if visual.shape[0] > batch_size * length:
            raise ValueError(f"{visual.shape[0]} visual tokens for {batch_size * length} places")
        if places is None:
            places = is_visual.flatten().nonzero().squeeze(1)
        rows, columns = torch.div(places, length, rounding_mode="floor"), places % length
        if rows.numel() == 0:
            # a batch of text only brings one blank picture along, so that every parameter takes
            # part on every data-parallel rank; its gradient is zero
            return embeddings + 0.0 * visual.sum()
        if rows.numel() != visual.shape[0]:
            raise ValueError(
                f"{rows.numel()} visual tokens in input_ids but {visual.shape[0]} embeddings: the "
                "batch was not made with this model's tokenizer"
            )
        return embeddings.index_put((columns, rows), visual)


@dataclass
class TokenizerQwen2VLConfig(Qwen2VLConfig):
    """Qwen2VLConfig that builds a `TokenizerQwen2VL`."""

    #: sections of the head dimension for temporal, row and column ids; NeMo forces the 2B's
    mrope_section: tuple[int, int, int] = (16, 24, 24)

    def __post_init__(self) -> None:
        """Undo NeMo's fixed M-RoPE sections where the model has others."""
        super().__post_init__()
        if self.language_transformer_config is not None:
            self.language_transformer_config.mrope_section = list(self.mrope_section)

    def configure_model(self, tokenizer: object, vp_stage: int | None = None) -> TokenizerQwen2VL:
        """Build this rank's stage exactly as NeMo does, then give it the tokenizer's forward."""
        if self.sequence_parallel and not torch.cuda.is_available():
            # the embedding's dropout would fork a CUDA generator, and there is none
            get_cuda_rng_tracker().fork = contextlib.nullcontext
        model = super().configure_model(tokenizer, vp_stage)
        # NeMo names its model class inside the method that also hands the parallel layout down to
        # the three sub-configurations; the subclass adds methods only, so adopting it is safe.
        model.__class__ = TokenizerQwen2VL
        model.language_model.__class__ = AnswerLossGPTModel
        model.language_model.rotary_pos_emb.__class__ = MultimodalAngles
        expect_no_norm_state(model)
        return model
