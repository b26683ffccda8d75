"""Micro batches: padded rows of one sample each, or packs of several.

Shape legend: B rows, S row length, N cells and P pictures of all rows in order, G attention
segments of the vision tower, C segments of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dct_tokenizer import VisualTokenizer
from dct_vl.inputs.pictures import PictureCells, encode_pictures, join_cells
from dct_vl.inputs.plan_chat import VISUAL_TOKEN_INDEX
from dct_vl.inputs.samples import EncodedChat

#: fields of a batch that the model's stages take, by the stage that needs them
FIRST_STAGE_FIELDS = ("input_ids", "cells", "vit_positions", "vit_cu_seqlens", "vit_grids")
LAST_STAGE_FIELDS = ("labels", "loss_mask")
EVERY_STAGE_FIELDS = ("position_ids", "text_cu_seqlens")
#: tensors whose numbers the host needs: read off a device, they would have to be waited for
HOST_FIELDS = frozenset({"vit_grids"})


def pad_batch(
    samples: Sequence[EncodedChat],
    *,
    visual: VisualTokenizer,
    pad_to: int | None,
    pad_multiple: int,
) -> dict[str, Any]:
    """Rows padded on the right.

    Padding sits after the text, where causal attention keeps it from touching anything, and
    carries no loss.

    Returns:
        input_ids (B, S) int64, VISUAL_TOKEN_INDEX at visual tokens; labels (B, S) int64, shifted;
        loss_mask (B, S) float32; position_ids (3, B, S) int64; cells (N, T, 3, b, b) uint8;
        vit_positions (N, 2) float32; vit_cu_seqlens (G+1,) int32; vit_grids (P, 3) int64, one a
        picture; longest_segment in cells; text_cu_seqlens None, as every row is one sample;
        sample_keys and sample_lengths, one a sample; num_tokens (3,) int64: text, visual, padding.

    Raises:
        ValueError: a sample is longer than `pad_to`.
    """
    longest = max(len(s.input_ids) for s in samples)
    length = pad_to if pad_to is not None else -(-longest // pad_multiple) * pad_multiple
    if longest > length:
        raise ValueError(f"a sample of {longest} tokens does not fit a batch of {length}")
    return {**_fill_rows([[s] for s in samples], length, visual), "text_cu_seqlens": None}


def pack_batch(
    packs: Sequence[Sequence[EncodedChat]], *, visual: VisualTokenizer, length: int
) -> dict[str, Any]:
    """Rows of one fixed length, each of several samples that do not see each other.

    Samples stand one behind the other, each with positions from 0; what is left of a row is
    padding and a segment of its own.

    Returns:
        The fields of `pad_batch`, with text_cu_seqlens (C+1,) int32: boundaries of samples and
        padding over the rows laid end to end, 0 to B*S; and longest_text_segment, in tokens.

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
    return {
        **_fill_rows(packs, length, visual),
        "text_cu_seqlens": torch.tensor([0, *np.cumsum(segments)], dtype=torch.int32),
        "longest_text_segment": max(segments),
    }


def _fill_rows(
    packs: Sequence[Sequence[EncodedChat]], length: int, visual: VisualTokenizer
) -> dict[str, Any]:
    """The fields that padded rows and packs have in common."""
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
    num_visual = int((input_ids == VISUAL_TOKEN_INDEX).sum())
    num_text = sum(len(s.input_ids) for s in samples) - num_visual
    return {
        "input_ids": torch.from_numpy(input_ids),
        "labels": torch.from_numpy(labels),
        "loss_mask": torch.from_numpy(loss_mask),
        "position_ids": torch.from_numpy(position_ids),
        **visual_fields([s.pictures for s in samples], visual),
        "sample_keys": [s.__key__ for s in samples],
        "sample_lengths": [len(s.input_ids) for s in samples],
        "num_tokens": torch.tensor([num_text, num_visual, rows * length - num_text - num_visual]),
    }


def visual_fields(pictures: Sequence[PictureCells], visual: VisualTokenizer) -> dict[str, Any]:
    """Cells, positions, segments, grids and the longest segment of all samples, in order.

    A batch without pictures gets one small blank one, so that the vision tower takes part in
    every step on every rank; no token refers to it.
    """
    present = [p for p in pictures if p.cells is not None]
    if not present:
        blank = np.zeros((1, 28, 28, 3), dtype=np.uint8)
        present = [encode_pictures(visual, [blank], [visual.plan(28, 28)])]
    segments = np.concatenate([p.vit_segments for p in present])
    boundaries = np.concatenate(([0], np.cumsum(segments))).astype(np.int32)
    return {
        "cells": join_cells([p.cells for p in present if p.cells is not None]),
        "vit_positions": torch.from_numpy(np.concatenate([p.vit_positions for p in present])),
        "vit_cu_seqlens": torch.from_numpy(boundaries),
        "vit_grids": torch.from_numpy(np.concatenate([p.vit_grids for p in present])),
        "longest_segment": int(segments.max()),
    }
