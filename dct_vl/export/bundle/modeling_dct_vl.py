"""Qwen2-VL and Qwen2.5-VL whose patch embedding, ViT positions and M-RoPE ids are a visual
tokenizer's.

Shape legend: R rows, S tokens a row, N cells, M visual tokens, H language width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLForConditionalGeneration

from dct_tokenizer.base import VisualTokenizer
from dct_tokenizer.registry import build_tokenizer
from dct_tokenizer.windows import GROUP, attention_windows
from dct_vl.export.bundle.configuration_dct_vl import DctVL25Config, DctVLConfig
from dct_vl.export.bundle.media_fields import (
    EXTENT,
    NAMES,
    TOKENS,
    bits_float,
    float_bits,
    take_media,
)


def fixed_numbers(front_end: nn.Module) -> list[str]:
    """Names of what a front end saves and does not train."""
    trained = dict(front_end.named_parameters())
    return [name for name in front_end.state_dict() if name not in trained]


class CellEmbedding(nn.Module):
    """A tokenizer's front end that keeps its fixed numbers in float32 whatever is cast.

    Loading casts every floating-point tensor to the model's dtype, so the statistics of the
    whitening are kept as their bits.
    """

    def __init__(self, tokenizer: VisualTokenizer, embed_dim: int) -> None:
        super().__init__()
        self.front_end = tokenizer.front_end(embed_dim)
        self.statistics = fixed_numbers(self.front_end)
        for name in self.statistics:
            value = getattr(self.front_end, name)
            delattr(self.front_end, name)
            self.front_end.register_buffer(name, value, persistent=False)
            self.register_buffer(f"{name}_bits", float_bits(value))

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """(N, T, 3, B, B) uint8 → (N, width of the ViT)."""
        for name in self.statistics:
            setattr(self.front_end, name, bits_float(getattr(self, f"{name}_bits")))
        embedded: torch.Tensor = self.front_end(cells)
        return embedded


class _TakesCells:
    """Takes what `DctVLProcessor` makes; comes before one of transformers' two models."""

    config: Any
    visual: Any
    get_input_embeddings: Any
    rope_deltas: Any

    def __init__(self, config: DctVLConfig | DctVL25Config) -> None:
        base: Any = super()
        base.__init__(config)
        if config.visual_tokenizer is None:
            raise ValueError("config.json has no visual_tokenizer")
        tokenizer = build_tokenizer(config.visual_tokenizer)
        vision = config.vision_config
        width = getattr(vision, "embed_dim", None) or vision.hidden_size
        self.visual.patch_embed = CellEmbedding(tokenizer, width)
        self.post_merge = tokenizer.post_merge()

    def encode_cells(
        self,
        pixel_values: torch.Tensor,
        cell_positions: torch.Tensor,
        segment_lengths: torch.Tensor,
        image_grid_thw: torch.Tensor,
    ) -> torch.Tensor:
        """Cells → (M, H); see `media_fields` for shapes and dtypes."""
        vision = self.visual
        device = pixel_values.device
        positions = bits_float(cell_positions).to(device)
        boundaries = F.pad(segment_lengths.cumsum(0, dtype=torch.int32), (1, 0)).to(device)
        whole_slices = range(len(vision.blocks))
        windows, order = boundaries, None
        if hasattr(vision, "fullatt_block_indexes"):
            whole_slices = vision.fullatt_block_indexes
            side = vision.window_size // vision.patch_size
            order, windows = attention_windows(positions, boundaries, side)
            pixel_values, positions = (
                x.view(-1, GROUP, *x.shape[1:])[order].flatten(0, 1)
                for x in (pixel_values, positions)
            )
        hidden = vision.patch_embed(pixel_values)
        inv_freq = vision.rotary_pos_emb.inv_freq.to(hidden.device, torch.float32)
        # (N, 2, head_dim / 4) → (N, head_dim / 2), twice for the rotated halves
        angles = (positions[:, :, None] * inv_freq).flatten(1)
        angles = torch.cat((angles, angles), dim=-1)
        for number, block in enumerate(vision.blocks):
            hidden = block(
                hidden,
                cu_seqlens=boundaries if number in whole_slices else windows,
                position_embeddings=(angles.cos(), angles.sin()),
            )
        merged = vision.merger(hidden)
        if order is not None:
            merged = merged[order.argsort()]
        return merged if self.post_merge is None else self.post_merge(merged, image_grid_thw)

    def planned_positions(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        token_positions: torch.Tensor,
        media_counts: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """M-RoPE ids (3, R, S) and what they are ahead of the cache's places, (R, 1).

        An image's ids start where the text stopped; the text goes on after its extent.
        """
        num_rows, length = input_ids.shape
        ids = torch.ones((3, num_rows, length), dtype=torch.int64)
        deltas = torch.zeros((num_rows, 1), dtype=torch.int64)
        counts = media_counts.tolist()
        positions_of = token_positions.cpu().split([count[TOKENS] for count in counts])
        parts = iter(zip(positions_of, counts, strict=True))
        visual = self._is_visual(input_ids).cpu()
        for row in range(num_rows):
            there = torch.arange(length)
            if attention_mask is not None:
                there = attention_mask[row].cpu().nonzero().flatten()
            pieces = []
            place = start = 0
            looks = visual[row, there].tolist()
            while place < len(looks):
                if looks[place]:
                    positions, count = next(parts)
                    pieces.append(positions.T + start)
                    place, start = place + count[TOKENS], start + count[EXTENT]
                    continue
                stop = looks.index(True, place) if True in looks[place:] else len(looks)
                text = torch.arange(start, start + stop - place)
                pieces.append(text.expand(3, -1))
                start, place = start + stop - place, stop
            ids[:, row, there] = torch.cat(pieces, dim=1)
            deltas[row] = start - length
        return ids.to(input_ids.device), deltas.to(input_ids.device)

    def _is_visual(self, input_ids: torch.Tensor) -> torch.Tensor:
        config = self.config
        return (input_ids == config.image_token_id) | (input_ids == config.video_token_id)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        cell_positions: torch.Tensor | None = None,
        segment_lengths: torch.Tensor | None = None,
        token_positions: torch.Tensor | None = None,
        media_counts: torch.Tensor | None = None,
        cache_position: torch.Tensor | None = None,
        rope_deltas: torch.Tensor | None = None,
    ) -> Any:
        """As transformers' forward, with the fields of `media_fields` for images and videos."""
        if pixel_values is not None:
            if input_ids is None or cell_positions is None or segment_lengths is None:
                raise ValueError(
                    "pixel_values come with the processor's other fields and input_ids"
                )
            if token_positions is None or media_counts is None or image_grid_thw is None:
                raise ValueError("pixel_values come with the processor's other fields")
            if inputs_embeds is None:
                inputs_embeds = self.get_input_embeddings()(input_ids)
            visual = self.encode_cells(
                pixel_values, cell_positions, segment_lengths, image_grid_thw
            ).to(inputs_embeds.device, inputs_embeds.dtype)
            places = self._is_visual(input_ids)
            if int(places.sum()) != len(visual):
                raise ValueError(
                    f"{int(places.sum())} visual tokens in input_ids, {len(visual)} in the "
                    "images: text and images must come from one call of the processor"
                )
            inputs_embeds = inputs_embeds.masked_scatter(places[..., None], visual)
            if position_ids is None:
                position_ids, self.rope_deltas = self.planned_positions(
                    input_ids, attention_mask, token_positions, media_counts
                )
        base: Any = super()
        return base.forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            cache_position=cache_position,
        )

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, cache_position: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The fields of images go with the first step only."""
        base: Any = super()
        inputs: dict[str, Any] = base.prepare_inputs_for_generation(
            input_ids, cache_position=cache_position, **kwargs
        )
        for name in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts"):
            inputs.pop(name, None)
        if inputs["cache_position"][0] != 0:
            for name in NAMES:
                inputs[name] = None
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Any = None,
        **model_kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Repeat rows, and each row's images with it."""
        fields = {name: model_kwargs.pop(name, None) for name in NAMES}
        if expand_size > 1 and input_ids is not None and fields["media_counts"] is not None:
            fields = take_media(fields, self._media_of_rows(input_ids, fields, expand_size))
        base: Any = super()
        ids, expanded = base._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return ids, {**expanded, **{n: v for n, v in fields.items() if v is not None}}

    def _media_of_rows(
        self, input_ids: torch.Tensor, fields: dict[str, torch.Tensor], repeats: int
    ) -> list[int]:
        counts = fields["media_counts"][:, TOKENS].tolist()
        chosen: list[int] = []
        media = 0
        for left in self._is_visual(input_ids).sum(1).tolist():
            own = []
            while left > 0:
                left -= counts[media]
                own.append(media)
                media += 1
            chosen += own * repeats
        return chosen


class DctVLForConditionalGeneration(  # type: ignore[misc]
    _TakesCells, Qwen2VLForConditionalGeneration
):
    """Qwen2-VL with a visual tokenizer."""

    config_class = DctVLConfig  # type: ignore[assignment]


class DctVL25ForConditionalGeneration(  # type: ignore[misc]
    _TakesCells, Qwen2_5_VLForConditionalGeneration
):
    """Qwen2.5-VL with a visual tokenizer, whose windows are those of `attention_windows`."""

    config_class = DctVL25Config  # type: ignore[assignment]
