"""uint8 frames to uint8 cells and back: resize and cut, bit-equal to Qwen2-VL's.

Shape legend: T frames, H, W pixels, N cells, T' frames per cell, B cell side in pixels.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from PIL import Image

from dct_tokenizer.geometry import MERGE
from dct_tokenizer.plan import Plan

Frames: TypeAlias = np.ndarray | torch.Tensor


def as_frames(frames: Frames) -> np.ndarray:
    """uint8 (T, H, W, 3) as a numpy array. Raises ValueError for another shape or dtype."""
    array = frames.cpu().numpy() if isinstance(frames, torch.Tensor) else np.asarray(frames)
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise ValueError(
            f"frames are {array.dtype} {array.shape}; expected uint8 (frames, height, width, 3) "
            "in RGB: add the frame axis to a single image and convert it to RGB"
        )
    return array


def resize_frames(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (T, height, width, 3), each frame by Pillow's bicubic as HF's processor does."""
    if frames.shape[1:3] == (height, width):
        return frames
    size = (width, height)
    return np.stack(
        [np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BICUBIC)) for f in frames]
    )


def pad_frames(frames: np.ndarray, total: int) -> np.ndarray:
    """uint8 (total, H, W, 3): the last frame repeated at the end."""
    missing = total - len(frames)
    return np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)]) if missing else frames


def check_frame_count(frames: np.ndarray, plan: Plan) -> None:
    """Raises ValueError where the frames cannot be the ones that the plan was made for."""
    cell_frames = plan.cell_shape[0]
    if not plan.frames - cell_frames < len(frames) <= plan.frames:
        raise ValueError(
            f"{len(frames)} frames for a plan of {plan.frames} (cells of {cell_frames}): "
            "make the plan with the number of frames that is passed to cells()"
        )


def cut_cells(frames: np.ndarray, plan: Plan) -> torch.Tensor:
    """uint8 (N, T', 3, B, B) of frames that already have the plan's size and length."""
    t, h, w = plan.grid_thw
    cell_frames, _, b, _ = plan.cell_shape
    grid = frames.reshape(t, cell_frames, h // MERGE, MERGE, b, w // MERGE, MERGE, b, 3)
    # axes: t T' H m b W n b' c -> t H W m n T' c b b'
    cells = grid.transpose(0, 2, 5, 3, 6, 1, 8, 4, 7)
    return torch.from_numpy(cells.copy().reshape(-1, cell_frames, 3, b, b))


def join_cells(cells: torch.Tensor, plan: Plan) -> torch.Tensor:
    """(T, H, W, 3) of (N, T', 3, B, B): the inverse of `cut_cells`, any dtype."""
    t, h, w = plan.grid_thw
    cell_frames, _, b, _ = plan.cell_shape
    grid = cells.reshape(t, h // MERGE, w // MERGE, MERGE, MERGE, cell_frames, 3, b, b)
    frames = grid.permute(0, 5, 1, 3, 7, 2, 4, 8, 6)
    return frames.reshape(t * cell_frames, h * b, w * b, 3)


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """0..255 floats rounded and clipped to uint8."""
    return pixels.round().clamp(0, 255).to(torch.uint8)
