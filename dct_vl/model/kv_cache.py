"""Keys and values of the tokens so far, so that every new token costs one position.

They are kept as the core attention gets them, rotated by their explicit positions: Megatron's own
inference context keeps them before the rotation and would turn all of them again for every token.

Shape legend: B rows, S length of the prompts, C places a row, H query heads, G key/value heads, D
head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F


class Places:
    """How far every row is filled; all layers share it.

    Args:
        lengths: (B,) int64, tokens of each prompt. Prompts are padded on the right; a row's new
            tokens overwrite its padding, which nothing ever attends to.
        capacity: places a row, the longest prompt and all new tokens.
    """

    def __init__(self, lengths: torch.Tensor, capacity: int) -> None:
        self.lengths = lengths
        self.capacity = capacity
        self.rows = torch.arange(len(lengths), device=lengths.device)
        #: places of the fullest row; None while the prompts run
        self.num_used: int | None = None
        self._mask: torch.Tensor | None = None

    def end_prompts(self) -> None:
        """Say that the prompts have run: from now on each row gets one token at a time."""
        self.num_used = int(self.lengths.max())
        self._admit()

    def advance(self) -> None:
        """Say that a token has run."""
        self.lengths = self.lengths + 1
        self._admit()

    def _admit(self) -> None:
        assert self.num_used is not None
        self.num_used += 1
        place = torch.arange(self.num_used, device=self.lengths.device)
        self._mask = (place <= self.lengths[:, None])[:, None, None]

    @property
    def mask(self) -> torch.Tensor:
        """(B, 1, 1, C') bool: places that a row's newest token attends to, itself among them."""
        assert self._mask is not None
        return self._mask


class LayerCache:
    """Keys and values of one layer, (B, G, C, D) each."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        softmax_scale: float | None,
    ) -> torch.Tensor | None:
        """Attend to all tokens so far.

        Args:
            query: (S, B, H, D), S = 1 once the prompts have run.
            key: (S, B, G, D).
            value: likewise.
            softmax_scale: None for 1 / √D.

        Returns:
            (1, B, H D); None for prompts, whose attention is the ordinary causal one.
        """
        if self.places.num_used is None:
            self.keys, self.values = self._kept(key), self._kept(value)
            return None
        assert self.keys is not None
        assert self.values is not None
        rows, lengths, used = self.places.rows, self.places.lengths, self.places.num_used
        self.keys[rows, :, lengths] = key[0]
        self.values[rows, :, lengths] = value[0]
        context = F.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            self.keys[:, :, :used],
            self.values[:, :, :used],
            attn_mask=self.places.mask,
            scale=softmax_scale,
            enable_gqa=query.shape[2] != key.shape[2],
        )
        return context.permute(2, 0, 1, 3).flatten(2)

    def _kept(self, prompt: torch.Tensor) -> torch.Tensor:
        length, rows, heads, size = prompt.shape
        # zeros: what a mask leaves out is still multiplied by 0, which must not be NaN
        kept = prompt.new_zeros(rows, heads, self.places.capacity, size)
        kept[:, :, :length] = prompt.permute(1, 2, 0, 3)
        return kept


@contextmanager
def cached_attention(language_model: Any, places: Places) -> Iterator[None]:
    """Every layer of this rank's stage keeps its keys and values while this lasts."""
    attentions = [layer.self_attention.core_attention for layer in language_model.decoder.layers]
    try:
        for attention in attentions:
            attention.cache = LayerCache(places)
        yield
    finally:
        for attention in attentions:
            attention.cache = None
