"""Show an image through a tokenizer, and measure the difference.

Shape legend: H, W size of the resized image in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from dct_tokenizer.base import VisualTokenizer
from dct_tokenizer.basis import RGB_TO_YCBCR, dct_matrix
from dct_tokenizer.decode import decode_rgb
from dct_tokenizer.pixels import resize_frames
from dct_tokenizer.plan import Plan
from dct_tokenizer.upright import ImageError

#: Side of the blocks whose spectrum is compared, in pixels.
SPECTRUM_BLOCK = 28


@dataclass(frozen=True, kw_only=True)
class View:
    """An image, what a tokenizer shows of it, and the distance."""

    tokenizer: VisualTokenizer
    plan: Plan
    #: uint8 (H, W, 3): the image at the size at which this tokenizer is compared.
    image: np.ndarray
    #: uint8 (H, W, 3): what the model sees, enlarged to that size where it is smaller.
    seen: np.ndarray
    #: uint8 (h, w, 3): the same at its own size.
    decoded: np.ndarray
    #: float (H, W): absolute error, mean over the channels, in grey levels.
    error: np.ndarray
    #: Decibels; inf where nothing is lost.
    psnr: float
    #: Mean structural similarity of the luma, at most 1.
    ssim: float
    #: float (SPECTRUM_BLOCK,): part of the luma energy kept per band; band k holds the
    #: coefficients (i, j) with max(i, j) = k of 28-pixel blocks.
    kept_by_band: np.ndarray


def look(tokenizer: VisualTokenizer, image: np.ndarray) -> View:
    """Compare an image, uint8 (H', W', 3), with what a tokenizer shows of it."""
    height, width = image.shape[:2]
    frames = image[None]
    plan = tokenizer.refine(frames, tokenizer.plan(height, width))
    decoded = tokenizer.seen(frames, plan)
    size = tokenizer.view_size(height, width)
    resized = resize_frames(frames, *size)[0]
    seen = resize_frames(decoded, *size)[0]
    difference = seen.astype(np.float64) - resized
    squared = np.mean(difference**2)
    return View(
        tokenizer=tokenizer,
        plan=plan,
        image=resized,
        seen=seen,
        decoded=decoded[0],
        error=np.abs(difference).mean(-1),
        psnr=10 * math.log10(255**2 / squared) if squared else math.inf,
        ssim=_ssim(resized, seen),
        kept_by_band=_kept_by_band(_luma(resized), _luma(seen)),
    )


def load_image(path: Path) -> np.ndarray:
    """uint8 (H, W, 3) RGB of an image file.

    Raises:
        ImageError: none can be read from it; the message names the file.
    """
    try:
        return decode_rgb(path.read_bytes())[0]
    except ImageError as error:
        raise ImageError(error.fault, f"{path} {error}") from error


def _luma(image: np.ndarray) -> np.ndarray:
    return image @ np.array(RGB_TO_YCBCR[0])


def _ssim(image: np.ndarray, seen: np.ndarray) -> float:
    first, second = (
        torch.tensor(_luma(one), dtype=torch.float32)[None, None] for one in (image, seen)
    )
    value = structural_similarity_index_measure(second, first, data_range=255.0)
    assert isinstance(value, torch.Tensor)
    return value.item()


def _kept_by_band(image: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """1 less the relative squared error per band, not below 0; 1 for bands without energy."""
    original, error = (_energy_by_band(one) for one in (image, seen - image))
    lost = np.divide(error, original, out=np.zeros_like(error), where=original > 1e-9)
    return np.clip(1 - lost, 0, 1)


def _energy_by_band(luma: np.ndarray) -> np.ndarray:
    """float (SPECTRUM_BLOCK,) energy of the blocks' DCT per band; small images are padded."""
    side = SPECTRUM_BLOCK
    pad = [(0, max(0, side - n)) for n in luma.shape]
    padded = np.pad(luma, pad, mode="edge")
    rows, columns = (n // side for n in padded.shape)
    grid = padded[: rows * side, : columns * side].reshape(rows, side, columns, side)
    dct = dct_matrix(side).numpy()
    energy = (dct @ grid.transpose(0, 2, 1, 3) @ dct.T) ** 2
    band = np.maximum(*np.indices((side, side)))
    return np.bincount(band.ravel(), energy.sum((0, 1)).ravel(), minlength=side)
