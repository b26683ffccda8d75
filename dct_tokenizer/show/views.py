"""One picture through one tokenizer: what is seen of it, and how far that is from the picture.

Shape legend: H, W size of the resized picture in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.image import structural_similarity_index_measure

from dct_tokenizer.base import VisualTokenizer
from dct_tokenizer.pixels import resize_frames
from dct_tokenizer.plan import Plan
from dct_tokenizer.transforms import RGB_TO_YCBCR, dct_matrix

#: Side of the blocks whose spectrum is compared, in pixels.
SPECTRUM_BLOCK = 28


@dataclass(frozen=True, kw_only=True)
class View:
    """A picture, what a tokenizer shows of it, and the distance."""

    tokenizer: VisualTokenizer
    plan: Plan
    #: uint8 (H, W, 3): the picture at the size at which this tokenizer is compared.
    picture: np.ndarray
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


def look(tokenizer: VisualTokenizer, picture: np.ndarray) -> View:
    """See uint8 (H', W', 3) through a tokenizer."""
    height, width = picture.shape[:2]
    frames = picture[None]
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
        picture=resized,
        seen=seen,
        decoded=decoded[0],
        error=np.abs(difference).mean(-1),
        psnr=10 * math.log10(255**2 / squared) if squared else math.inf,
        ssim=_ssim(resized, seen),
        kept_by_band=_kept_by_band(_luma(resized), _luma(seen)),
    )


def load_picture(path: str) -> np.ndarray:
    """uint8 (H, W, 3) RGB of an image file."""
    return np.asarray(Image.open(path).convert("RGB"))


def _luma(picture: np.ndarray) -> np.ndarray:
    return picture @ np.array(RGB_TO_YCBCR[0])


def _ssim(picture: np.ndarray, seen: np.ndarray) -> float:
    first, second = (
        torch.tensor(_luma(image), dtype=torch.float32)[None, None] for image in (picture, seen)
    )
    value = structural_similarity_index_measure(second, first, data_range=255.0)
    assert isinstance(value, torch.Tensor)
    return value.item()


def _kept_by_band(picture: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """1 less the relative squared error per band, not below 0; 1 for bands without energy."""
    original, error = (_energy_by_band(image) for image in (picture, seen - picture))
    lost = np.divide(error, original, out=np.zeros_like(error), where=original > 1e-9)
    return np.clip(1 - lost, 0, 1)


def _energy_by_band(luma: np.ndarray) -> np.ndarray:
    """float (SPECTRUM_BLOCK,) energy of the blocks' DCT per band; small pictures are padded."""
    side = SPECTRUM_BLOCK
    pad = [(0, max(0, side - n)) for n in luma.shape]
    padded = np.pad(luma, pad, mode="edge")
    rows, columns = (n // side for n in padded.shape)
    grid = padded[: rows * side, : columns * side].reshape(rows, side, columns, side)
    dct = dct_matrix(side).numpy()
    energy = (dct @ grid.transpose(0, 2, 1, 3) @ dct.T) ** 2
    band = np.maximum(*np.indices((side, side)))
    return np.bincount(band.ravel(), energy.sum((0, 1)).ravel(), minlength=side)
