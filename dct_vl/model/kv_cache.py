"""Keys and values of the tokens so far, in slots that do not move.

A step costs one position of each slot, and can be replayed as a CUDA graph.

They are kept as the core attention gets them, rotated by their explicit positions: Megatron's own
inference context keeps them before the rotation and would turn all of them again for every token.

Shape legend: N slots, n the first of them that a step is made for, C places a slot, S tokens of
prompts, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dct_vl.inputs.batch import Segments


class SlotCache:
    """Keys and values of all layers of this rank's stage.

    What lies behind a slot's length is never attended to: a slot is free again by being given
    another prompt.

    Args:
        num_slots: N.
        capacity: C, a prompt and all tokens of its answer.
        device: of everything.
    """

    def __init__(self, num_slots: int, capacity: int, device: torch.device) -> None:
        self.num_slots = num_slots
        self.capacity = capacity
        #: (N,) int64, tokens kept of each slot; a step writes at this place
        self.lengths = torch.zeros(num_slots, dtype=torch.int64, device=device)
        #: of the prompts that run now, in one row; None while a step runs
        self.segments: Segments | None = None
        #: the places of a slot that any slot uses; a kernel that knows lengths needs no such bound
        self.num_used = capacity
        self._rows = torch.arange(num_slots, device=device)
        #: (S,) int64 twice: slot and place of each token of the prompts
        self._target: tuple[torch.Tensor, torch.Tensor] | None = None
        #: (N, C, G, D) keys and values of each layer
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @staticmethod
    def bytes_a_place(num_layers: int, num_groups: int, head_size: int, dtype: torch.dtype) -> int:
        """Memory of one token of one slot, of `num_layers` layers."""
        return 2 * num_layers * num_groups * head_size * dtype.itemsize

    def begin_prompts(self, slots: torch.Tensor, segments: Segments, length: int) -> None:
        """Let the next forward pass be of prompts in one row, one a segment.

        Args:
            slots: (segments,) int64, which each goes to; on the device, as `segments` is.
            length: S, which the device would have to be asked for.
        """
        lengths = segments.cu_seqlens.diff().to(torch.int64)
        token_slots = slots.repeat_interleave(lengths, output_size=length)
        starts = segments.cu_seqlens[:-1].to(torch.int64)
        starts = starts.repeat_interleave(lengths, output_size=length)
        place = torch.arange(len(starts), device=starts.device) - starts
        self.segments, self._target = segments, (token_slots, place)
        self.lengths[slots] = lengths

    def end_prompts(self) -> None:
        """Say that the prompts have run: a forward pass is a step of the first n slots again."""
        self.segments = self._target = None

    def advance(self, num_rows: int) -> None:
        """Count the token that a step has written into each of the first `num_rows` slots."""
        # slots that nobody reads any more run along, and stay inside
        self.lengths[:num_rows].add_(1).clamp_(max=self.capacity - 1)

    def attend(
        self,
        layer_number: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        softmax_scale: float | None,
    ) -> torch.Tensor | None:
        """Keep keys and values, and attend to all tokens so far.

        Args:
            layer_number: Megatron's.
            query: (S, 1, H, D) of prompts, (1, n, H, D) of a step.
            key, value: as the query, of G heads.
            softmax_scale: None for 1 / √D.

        Returns:
            (1, n, H D); None for prompts, whose attention is the ordinary one within segments.
        """
        keys, values = self._of_layer(layer_number, key)
        if self._target is not None:
            keys[self._target], values[self._target] = key[:, 0], value[:, 0]
            return None
        scale = query.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
        if query.is_cuda and query.shape[-1] in _KERNEL_SIZES:
            from dct_vl.model.fused import slot_attention

            return slot_attention.attend(query, key, value, keys, values, self.lengths, scale)
        num_rows, used = query.shape[1], self.num_used
        rows, lengths = self._rows[:num_rows], self.lengths[:num_rows]
        keys[rows, lengths], values[rows, lengths] = key[0], value[0]
        mask = torch.arange(used, device=lengths.device) <= lengths[:, None]
        context = F.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            keys[:num_rows, :used].transpose(1, 2),
            values[:num_rows, :used].transpose(1, 2),
            attn_mask=mask[:, None, None],
            scale=scale,
            enable_gqa=query.shape[2] != key.shape[2],
        )
        return context.permute(2, 0, 1, 3).flatten(2)

    def _of_layer(self, number: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if number not in self._layers:
            shape = (self.num_slots, self.capacity, *like.shape[2:])
            # zeros: what a mask leaves out is still multiplied by 0, which must not be NaN
            self._layers[number] = like.new_zeros(shape), like.new_zeros(shape)
        return self._layers[number]


#: head sizes of the kernel for steps: what one block of it holds
_KERNEL_SIZES = (16, 32, 64, 128)
