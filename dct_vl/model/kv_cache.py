"""Keys and values of the tokens so far, so that every new token costs one position.

They are kept as the core attention gets them, rotated by their explicit positions: Megatron's own
inference context keeps them before the rotation and would turn all of them again for every token.

Shape legend: B rows, S length of the prompts, C places a row, H query heads, G key/value heads, D
head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


class KeyValueCache:
    """Keys and values of all layers of this rank's stage, and how far every row is filled.

    Args:
        lengths: (B,) int64, tokens of each prompt. Prompts are padded on the right; a row's new
            tokens overwrite its padding, which nothing ever attends to.
        capacity: places a row, the longest prompt and all new tokens.
    """

    def __init__(self, lengths: torch.Tensor, capacity: int) -> None:
        self.lengths = lengths
        self.capacity = capacity
        self._rows = torch.arange(len(lengths), device=lengths.device)
        #: (B, G, C, D) keys and values of each layer
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        #: places of the fullest row; None while the prompts run
        self._num_used: int | None = None
        #: (B, 1, 1, C') bool: places that a row's newest token attends to, itself among them
        self._mask: torch.Tensor | None = None

    def end_prompts(self) -> None:
        """Say that the prompts have run: from now on each row gets one token at a time."""
        self._admit(int(self.lengths.max()))

    def advance(self) -> None:
        assert self._num_used is not None
        self.lengths = self.lengths + 1
        self._admit(self._num_used)

    def _admit(self, num_before: int) -> None:
        self._num_used = num_before + 1
        place = torch.arange(self._num_used, device=self.lengths.device)
        self._mask = (place <= self.lengths[:, None])[:, None, None]

    def attend(
        self,
        layer_number: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        softmax_scale: float | None,
    ) -> torch.Tensor | None:
        """Attend to all tokens so far.

        Args:
            layer_number: Megatron's.
            query: (S, B, H, D), S = 1 once the prompts have run.
            key, value: (S, B, G, D).
            softmax_scale: None for 1 / √D.

        Returns:
            (1, B, H D); None for prompts, whose attention is the ordinary causal one.
        """
        if self._num_used is None:
            self._layers[layer_number] = self._kept(key), self._kept(value)
            return None
        keys, values = self._layers[layer_number]
        keys[self._rows, :, self.lengths] = key[0]
        values[self._rows, :, self.lengths] = value[0]
        context = F.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            keys[:, :, : self._num_used],
            values[:, :, : self._num_used],
            attn_mask=self._mask,
            scale=softmax_scale,
            enable_gqa=query.shape[2] != key.shape[2],
        )
        return context.permute(2, 0, 1, 3).flatten(2)

    def _kept(self, prompt: torch.Tensor) -> torch.Tensor:
        length, rows, heads, size = prompt.shape
        # zeros: what a mask leaves out is still multiplied by 0, which must not be NaN
        kept = prompt.new_zeros(rows, heads, self.capacity, size)
        kept[:, :, :length] = prompt.permute(1, 2, 0, 3)
        return kept
