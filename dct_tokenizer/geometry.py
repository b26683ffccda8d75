"""Sizes, grids and positions: pure integer geometry, no pixels."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from dct_tokenizer.plan import Plan, PlanError

#: Beyond this ratio of sides Qwen2-VL refuses an image.
MAX_ASPECT = 200
#: Cells per side that the pretrained merger joins into one LLM token.
MERGE = 2
#: Frames behind one temporal M-RoPE id of the pretrained model.
FRAMES_PER_MROPE_ID = 2


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Height and width in pixels, multiples of `factor`, with min <= height * width <= max_pixels.

    The rule is `smart_resize` of transformers' `image_processing_qwen2_vl.py`, with two additions
    where that one fails or leaves the bound: a side never falls below one `factor`, and where that
    clamp pushes the area over `max_pixels` the longer side gives way. Like the original, an image
    enlarged to reach `min_pixels` may overshoot `max_pixels`, by less than one row and column.

    Raises:
        PlanError: a side below 1, an aspect ratio above 200, or `max_pixels` below one factor².
    """
    if height < 1 or width < 1:
        raise PlanError(f"image of {height}x{width} pixels: both sides must be at least 1")
    aspect = max(height, width) / min(height, width)
    if aspect > MAX_ASPECT:
        raise PlanError(
            f"image of {height}x{width} pixels has aspect ratio {aspect:.1f}; "
            f"at most {MAX_ASPECT} is possible: crop it or leave it out"
        )
    if max_pixels < factor * factor:
        raise PlanError(
            f"max_pixels={max_pixels} is below one token of {factor}x{factor} = "
            f"{factor * factor} pixels: raise max_pixels"
        )
    new_height = max(factor, round(height / factor) * factor)
    new_width = max(factor, round(width / factor) * factor)
    if new_height * new_width > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / beta / factor) * factor)
        new_width = max(factor, math.floor(width / beta / factor) * factor)
        longest = max_pixels // (factor * factor) * factor
        if new_height == factor:
            new_width = min(new_width, longest)
        elif new_width == factor:
            new_height = min(new_height, longest)
    elif new_height * new_width < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * beta / factor) * factor
        new_width = math.ceil(width * beta / factor) * factor
    return new_height, new_width


def _shared(array: np.ndarray) -> np.ndarray:
    """The array, read-only: cached arrays are shared by every plan of the same grid."""
    array.setflags(write=False)
    return array


def vit_grid_positions(grid_thw: tuple[int, int, int]) -> np.ndarray:
    """float32 (t*h*w, 2) row and column of each cell, rows in Qwen's (t, h/2, w/2, 2, 2) order."""
    t, h, w = grid_thw
    one_slice = _vit_slice_positions(h, w)
    # slices are cached, clips are not: their arrays are large and seldom met again
    return one_slice if t == 1 else np.tile(one_slice, (t, 1))


@lru_cache(maxsize=512)
def _vit_slice_positions(h: int, w: int) -> np.ndarray:
    rows, columns = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    grid = np.stack([rows, columns], axis=-1).reshape(h // MERGE, MERGE, w // MERGE, MERGE, 2)
    return _shared(grid.transpose(0, 2, 1, 3, 4).reshape(-1, 2).astype(np.float32))


def mrope_grid_positions(llm_grid_thw: tuple[int, int, int], id_step: int = 1) -> np.ndarray:
    """int64 (t*h*w, 3) M-RoPE ids of a regular grid; slice i has temporal id i * id_step."""
    t, h, w = llm_grid_thw
    one_slice = _mrope_slice_positions(h, w)
    if t == 1:
        return one_slice
    ids = np.tile(one_slice, (t, 1))
    ids[:, 0] = np.repeat(np.arange(t) * id_step, h * w)
    return ids


@lru_cache(maxsize=512)
def _mrope_slice_positions(h: int, w: int) -> np.ndarray:
    return _shared(np.indices((1, h, w), dtype=np.int64).reshape(3, -1).T.copy())


@lru_cache(maxsize=512)
def slice_boundaries(num_slices: int, cells_per_slice: int) -> np.ndarray:
    """int32 (num_slices + 1,) attention boundaries, one segment per temporal slice."""
    return _shared(np.arange(num_slices + 1, dtype=np.int32) * np.int32(cells_per_slice))


def num_slices(frames: int, frames_per_cell: int) -> int:
    """Temporal slices of a clip, the last one padded. Raises PlanError for less than one frame."""
    if frames < 1:
        raise PlanError(f"clip of {frames} frames: at least 1 is needed")
    return -(-frames // frames_per_cell)


def regular_plan(*, height: int, width: int, frames: int, cell: int, frames_per_cell: int) -> Plan:
    """The plan of an image or clip of `height` x `width` (resized) cut into equal cells.

    A cell of T frames advances the temporal M-RoPE id by T/2, so that a clip spans the same ids
    whatever the number of frames in a cell; ids and positions of a T = 2 grid are the ones that
    transformers' `get_rope_index` and `rot_pos_emb` compute for it.
    """
    grid = (num_slices(frames, frames_per_cell), height // cell, width // cell)
    llm_grid = (grid[0], grid[1] // MERGE, grid[2] // MERGE)
    id_step = max(1, frames_per_cell // FRAMES_PER_MROPE_ID)
    still = frames == 1
    cell_shape = (1 if still else frames_per_cell, 3, cell, cell)
    num_cells = math.prod(grid)
    return Plan(
        height=height,
        width=width,
        frames=1 if still else grid[0] * frames_per_cell,
        grid_thw=grid,
        llm_grid_thw=llm_grid,
        num_cells=num_cells,
        num_llm_tokens=math.prod(llm_grid),
        cell_shape=cell_shape,
        vit_positions=vit_grid_positions(grid),
        mrope_positions=mrope_grid_positions(llm_grid, id_step),
        mrope_extent=max(1 if still else grid[0] * id_step, llm_grid[1], llm_grid[2]),
        vit_cu_seqlens=slice_boundaries(grid[0], grid[1] * grid[2]),
        wire_bytes=num_cells * math.prod(cell_shape),
    )
