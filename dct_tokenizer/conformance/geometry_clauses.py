"""Clauses on configuration, plans, cells and positions. Each returns what it measured."""

from __future__ import annotations

import math
import pickle
from types import SimpleNamespace

import numpy as np
import torch

from dct_tokenizer.base import VisualTokenizer
from dct_tokenizer.conformance.inputs import ODD_SIZES, clip_of, expect, frames_per_cell, prepared
from dct_tokenizer.geometry import FRAMES_PER_MROPE_ID, MERGE
from dct_tokenizer.plan import Plan
from dct_tokenizer.registry import build_tokenizer

_VISION_START, _VIDEO, _IMAGE = 3, 2, 1


def check_config(tokenizer: VisualTokenizer) -> str:
    """A tokenizer equals the one built from its config, and survives pickling to a worker."""
    rebuilt = build_tokenizer(tokenizer.config())
    expect(rebuilt == tokenizer, f"rebuilt from its config it is {rebuilt}, not {tokenizer}")
    copy = pickle.loads(pickle.dumps(tokenizer))
    expect(copy == tokenizer, f"after pickling it is {copy}, not {tokenizer}")
    return f"{len(tokenizer.config())} keys"


def check_plan(tokenizer: VisualTokenizer) -> str:
    """The counts of the plan match what is produced, on odd sizes and lengths."""
    lengths = sorted({1, 2, 3, frames_per_cell(tokenizer) + 1})
    for height, width in ODD_SIZES:
        for frames in lengths if height * width < 60_000 else [1]:
            where = f"{height}x{width}x{frames}"
            clip = clip_of(height, width, frames)
            before = tokenizer.plan(height, width, frames)
            plan, cells = prepared(tokenizer, clip)
            expect(
                tuple(cells.shape) == (plan.num_cells, *plan.cell_shape),
                f"{where}: plan says {(plan.num_cells, *plan.cell_shape)}, cells are "
                f"{tuple(cells.shape)}",
            )
            expect(cells.dtype == torch.uint8, f"{where}: cells are {cells.dtype}, not uint8")
            expect(
                cells.numel() == plan.wire_bytes,
                f"{where}: plan says {plan.wire_bytes} bytes, cells take {cells.numel()}",
            )
            counts = (plan.num_cells, plan.num_llm_tokens)
            first = (before.num_cells, before.num_llm_tokens)
            ok = counts == first if tokenizer.counts_from_header else counts <= first
            expect(ok, f"{where}: header plan says {first} cells and tokens, final plan {counts}")
            _check_arrays(plan, where)
    return f"{len(ODD_SIZES)} sizes, clips of {lengths} frames"


def _check_arrays(plan: Plan, where: str) -> None:
    shapes = {
        "vit_positions": ((plan.num_cells, 2), np.float32),
        "mrope_positions": ((plan.num_llm_tokens, 3), np.int64),
        "vit_cu_seqlens": (plan.vit_cu_seqlens.shape, np.int32),
    }
    for name, (shape, dtype) in shapes.items():
        array = getattr(plan, name)
        expect(
            array.shape == shape and array.dtype == dtype,
            f"{where}: {name} is {array.dtype} {array.shape}, expected {dtype.__name__} {shape}",
        )
    if plan.token_boxes is None:
        grid = plan.grid_thw
        expect(
            math.prod(grid) == plan.num_cells,
            f"{where}: grid {grid} holds {math.prod(grid)} cells, plan says {plan.num_cells}",
        )


def check_segments(tokenizer: VisualTokenizer) -> str:
    """Attention segments are in order and add up to all cells, one per temporal slice."""
    for height, width in ODD_SIZES:
        plan, _ = prepared(tokenizer, clip_of(height, width, 3))
        bounds = plan.vit_cu_seqlens
        expect(
            bounds[0] == 0 and bounds[-1] == plan.num_cells and bool((np.diff(bounds) > 0).all()),
            f"{height}x{width}x3: boundaries {bounds.tolist()} for {plan.num_cells} cells",
        )
        expect(
            len(bounds) == plan.grid_thw[0] + 1,
            f"{height}x{width}x3: {len(bounds) - 1} segments for {plan.grid_thw[0]} slices",
        )
    return "sum of segments == cells"


def check_positions(tokenizer: VisualTokenizer) -> str:
    """M-RoPE ids are transformers' own on the same grid, time kept; ViT positions are distinct."""
    for height, width in ODD_SIZES:
        for frames in (1, 6):
            where = f"{height}x{width}x{frames}"
            plan, _ = prepared(tokenizer, clip_of(height, width, frames))
            ids = plan.mrope_positions
            if plan.token_boxes is None:
                expected, extent = _hf_positions(plan)
                expect(
                    bool(np.array_equal(ids, expected)),
                    f"{where}: M-RoPE ids differ from get_rope_index on {plan.llm_grid_thw}",
                )
                expect(
                    plan.mrope_extent == extent,
                    f"{where}: mrope_extent={plan.mrope_extent}, get_rope_index has {extent}",
                )
            distinct = len(np.unique(ids, axis=0))
            expect(distinct == len(ids), f"{where}: {len(ids)} tokens on {distinct} M-RoPE ids")
            expect(
                bool(ids.min() >= 0 and ids.max() < plan.mrope_extent),
                f"{where}: M-RoPE ids {ids.min()}..{ids.max()} for an extent of "
                f"{plan.mrope_extent}",
            )
            for start, stop in zip(plan.vit_cu_seqlens, plan.vit_cu_seqlens[1:], strict=False):
                inside = plan.vit_positions[start:stop]
                distinct = len(np.unique(inside, axis=0))
                expect(
                    distinct == len(inside),
                    f"{where}: {len(inside)} cells of a slice at {distinct} ViT positions",
                )
    return "ids equal get_rope_index"


def _hf_positions(plan: Plan) -> tuple[np.ndarray, int]:
    """(ids (M, 3), first free id) of transformers for the plan's LLM grid on the clip's time scale.

    A clip is laid out with one slice per two frames, and the slice at each cell's start is taken.
    """
    from transformers import Qwen2VLForConditionalGeneration

    still = plan.frames == 1
    slices, rows, columns = plan.llm_grid_thw
    step = 1 if still else plan.frames // slices // FRAMES_PER_MROPE_ID
    grid = torch.tensor([[slices * step, rows * MERGE, columns * MERGE]])
    config = SimpleNamespace(
        vision_config=SimpleNamespace(spatial_merge_size=MERGE),
        image_token_id=_IMAGE,
        video_token_id=_VIDEO,
        vision_start_token_id=_VISION_START,
    )
    token = _IMAGE if still else _VIDEO
    tokens = torch.tensor([[_VISION_START, *[token] * (slices * step * rows * columns), 0]])
    positions, _ = Qwen2VLForConditionalGeneration.get_rope_index(
        SimpleNamespace(config=config),
        tokens,
        **{f"{'image' if still else 'video'}_grid_thw": grid},
    )
    ids = (positions[:, 0, 1:-1].T - 1).reshape(slices, step, rows * columns, 3)[:, 0]
    return ids.reshape(-1, 3).numpy(), int(positions[0, 0, -1]) - 1


def check_merge(tokenizer: VisualTokenizer) -> str:
    """What reaches the language model is the planned number of tokens."""
    module = tokenizer.post_merge()
    plans = [tokenizer.plan(*size) for size in ODD_SIZES]
    planned = sum(plan.num_llm_tokens for plan in plans)
    merged = sum(plan.num_cells // MERGE**2 for plan in plans)
    if module is None:
        expect(planned == merged, f"{merged} merged cells for {planned} planned tokens")
        return "4 cells a token"
    features = module(torch.zeros(merged, 8), torch.tensor([plan.grid_thw for plan in plans]))
    expect(
        features.shape == (planned, 8),
        f"post_merge returns {tuple(features.shape)} for {planned} planned tokens",
    )
    return f"{planned / merged:.3f} of the merged features"
