"""Micro batches: what the model's forward takes, and how rows and packs of samples become it.

Shape legend: B rows, S row length, N cells, M visual tokens and P images of all rows in order, G
attention segments, T frames a cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch

from dct_tokenizer import VisualTokenizer
from dct_tokenizer.windows import attention_windows
from dct_vl.inputs.cells import VisualCells, encode_visual, join_cells
from dct_vl.inputs.chat import VISUAL_TOKEN_INDEX
from dct_vl.inputs.samples import EncodedChat

Self = TypeVar("Self", bound="DeviceFields")

#: marks a tensor whose numbers the host needs: read off a device, they would cost a sync
ON_HOST = {"on_host": True}


class DeviceFields:
    """A dataclass of tensors, and of such dataclasses, that go to a device together."""

    def map_tensors(self: Self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """A copy with `change` applied to every tensor that is not `ON_HOST`."""
        changed: dict[str, Any] = {}
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            if isinstance(value, DeviceFields):
                changed[one.name] = value.map_tensors(change)
            elif isinstance(value, torch.Tensor) and not one.metadata.get("on_host"):
                changed[one.name] = change(value)
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self: Self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        return self.map_tensors(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self: Self) -> Self:
        """A copy in pinned memory, out of which a copy to a device waits for nothing; torch's
        loader calls this.
        """
        return self.map_tensors(lambda x: x.pin_memory())

    def tensors(self) -> Iterator[torch.Tensor]:
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            if isinstance(value, torch.Tensor):
                yield value
            elif isinstance(value, DeviceFields):
                yield from value.tensors()


@dataclass(frozen=True, kw_only=True)
class Segments(DeviceFields):
    """Stretches of tokens or cells that attend within themselves only."""

    #: (G+1,) int32 boundaries over rows laid end to end, from 0; none crosses the end of a row
    cu_seqlens: torch.Tensor
    #: length of the longest one
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int] | np.ndarray) -> Segments:
        """Segments of these lengths, one behind the other."""
        boundaries = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        return cls(cu_seqlens=torch.from_numpy(boundaries), longest=int(max(lengths)))

    @property
    def num_pairs(self) -> int:
        """Σ length², what attention computes; best asked on the host."""
        return int((self.cu_seqlens.to(torch.int64).diff() ** 2).sum())


@dataclass(frozen=True, kw_only=True)
class Windows(DeviceFields):
    """Windows of Qwen2.5-VL's vision tower; see `dct_tokenizer.windows.attention_windows`."""

    #: (N / 4,) int64, groups of four cells in the order of their windows
    order: torch.Tensor
    #: the windows, in cells of that order
    segments: Segments


@dataclass(frozen=True, kw_only=True)
class VisualInputs(DeviceFields):
    """All images and videos of a batch, in order."""

    #: (N, T, 3, b, b) uint8, four neighbours in a row
    cells: torch.Tensor
    #: (N, 2) float32, row and column in the ViT's rotary units
    positions: torch.Tensor
    #: one a temporal slice of an image or video, in cells
    segments: Segments
    #: (P, 3) int64 ViT grids in cells
    grids: torch.Tensor = field(metadata=ON_HOST)
    #: (M,) int64, where in (B, S), row after row, their tokens are
    token_indices: torch.Tensor
    windows: Windows | None = None

    def with_windows(self, side: int) -> VisualInputs:
        """With windows of `side` × `side` units; best found on the host, for it asks for sizes."""
        order, boundaries = attention_windows(self.positions, self.segments.cu_seqlens, side)
        windows = Segments(cu_seqlens=boundaries, longest=int(boundaries.diff().max()))
        return replace(self, windows=Windows(order=order, segments=windows))


@dataclass(frozen=True, kw_only=True)
class Batch(DeviceFields):
    """A micro batch, or the part of one that a pipeline stage or an answer's next token needs."""

    #: (B, S) int64, VISUAL_TOKEN_INDEX at visual tokens
    input_ids: torch.Tensor
    #: (3, B, S) int64 M-RoPE ids: temporal, row, column. Of them, labels and loss_mask a
    #: context-parallel rank has its part of S
    position_ids: torch.Tensor
    #: samples and padding of packed rows, in tokens; None where every row is one sample
    segments: Segments | None = None
    #: None on all pipeline stages but the first
    visual: VisualInputs | None = None
    #: (B, S) int64, shifted: each token's next one; None where logits are wanted, and on all stages
    #: but the last
    labels: torch.Tensor | None = None
    #: (B, S) float32, 1 where the label is part of an answer; None on all stages but the last
    loss_mask: torch.Tensor | None = None
    #: (answers,) int64, where in (B, S), row after row, losses (logits without labels) are made;
    #: None makes all
    answer_indices: torch.Tensor | None = None
    #: one a sample, in order
    sample_keys: tuple[str, ...] = ()
    #: tokens of each sample
    sample_lengths: tuple[int, ...] = ()

    @property
    def num_visual_tokens(self) -> int:
        """Tokens that stand for parts of images and videos."""
        return 0 if self.visual is None else len(self.visual.token_indices)

    @property
    def num_text_tokens(self) -> int:
        """Other tokens of samples."""
        return sum(self.sample_lengths) - self.num_visual_tokens

    @property
    def num_padding_tokens(self) -> int:
        """Tokens of no sample."""
        return self.input_ids.numel() - sum(self.sample_lengths)

    def with_windows(self, side: int | None) -> Batch:
        """See `VisualInputs.with_windows`; as it is where a model has no windows, or no image."""
        if side is None or self.visual is None:
            return self
        return replace(self, visual=self.visual.with_windows(side))

    def with_answer_indices(self) -> Batch:
        """With the tokens that carry loss, found on the host: a device would be synced with."""
        assert self.loss_mask is not None
        return replace(self, answer_indices=self.loss_mask.flatten().nonzero()[:, 0])


def pad_batch(
    samples: Sequence[EncodedChat],
    *,
    visual: VisualTokenizer,
    pad_to: int | None,
    pad_multiple: int,
) -> Batch:
    """Rows padded on the right.

    Padding sits after the text, where causal attention keeps it from touching anything, and
    carries no loss.

    Raises:
        ValueError: a sample is longer than `pad_to`.
    """
    longest = max(len(s.input_ids) for s in samples)
    length = pad_to if pad_to is not None else -(-longest // pad_multiple) * pad_multiple
    if longest > length:
        raise ValueError(f"a sample of {longest} tokens does not fit a batch of {length}")
    return _fill_rows([[s] for s in samples], length, visual)


def pack_batch(
    packs: Sequence[Sequence[EncodedChat]], *, visual: VisualTokenizer, length: int
) -> Batch:
    """Rows of one fixed length, each of several samples that do not see each other.

    Samples stand one behind the other, each with positions from 0; what is left of a row is
    padding and a segment of its own.

    Raises:
        ValueError: the samples of a pack are longer than `length` together.
    """
    segments: list[int] = []
    for pack in packs:
        sizes = [len(sample.input_ids) for sample in pack]
        left = length - sum(sizes)
        if left < 0:
            raise ValueError(f"a pack of {sum(sizes)} tokens does not fit a row of {length}")
        segments += [*sizes, left] if left else sizes
    return replace(_fill_rows(packs, length, visual), segments=Segments.of(segments))


def _fill_rows(
    packs: Sequence[Sequence[EncodedChat]], length: int, visual: VisualTokenizer
) -> Batch:
    rows = len(packs)
    input_ids = np.zeros((rows, length), dtype=np.int64)
    labels = np.zeros((rows, length), dtype=np.int64)
    loss_mask = np.zeros((rows, length), dtype=np.float32)
    position_ids = np.zeros((3, rows, length), dtype=np.int64)
    for row, pack in enumerate(packs):
        start = 0
        for sample in pack:
            # the last token of a sample predicts nothing: what follows is another sample's
            stop = start + len(sample.input_ids)
            input_ids[row, start:stop] = sample.input_ids
            loss_mask[row, start : stop - 1] = sample.is_answer[1:]
            labels[row, start : stop - 1] = np.maximum(sample.input_ids[1:], 0)
            position_ids[:, row, start:stop] = sample.position_ids
            start = stop
    samples = [sample for pack in packs for sample in pack]
    token_indices = np.flatnonzero(input_ids == VISUAL_TOKEN_INDEX)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        visual=_visual_inputs([s.visual for s in samples], visual, token_indices),
        labels=torch.from_numpy(labels),
        loss_mask=torch.from_numpy(loss_mask),
        sample_keys=tuple(s.__key__ for s in samples),
        sample_lengths=tuple(len(s.input_ids) for s in samples),
    )


def _visual_inputs(
    samples: Sequence[VisualCells], visual: VisualTokenizer, token_indices: np.ndarray
) -> VisualInputs:
    """What the vision tower gets of all samples, in order.

    A batch without images gets one small blank one, so that the vision tower takes part in every
    step on every rank; no token refers to it.
    """
    present = [p for p in samples if p.cells is not None]
    if not present:
        blank = np.zeros((1, 28, 28, 3), dtype=np.uint8)
        present = [encode_visual(visual, [blank], [visual.plan(28, 28)])]
    return VisualInputs(
        cells=join_cells([p.cells for p in present if p.cells is not None]),
        positions=torch.from_numpy(np.concatenate([p.vit_positions for p in present])),
        segments=Segments.of(np.concatenate([p.vit_segments for p in present])),
        grids=torch.from_numpy(np.concatenate([p.vit_grids for p in present])),
        token_indices=torch.from_numpy(token_indices),
    )
