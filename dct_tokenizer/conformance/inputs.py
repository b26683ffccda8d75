"""What the clauses share: images and clips that need no file, and how a clause fails."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw

from dct_tokenizer.base import VisualTokenizer
from dct_tokenizer.plan import Plan


class ClauseError(AssertionError):
    """A clause of the contract that a tokenizer breaks; the message holds both values."""


def expect(ok: bool, message: str) -> None:
    """Raises ClauseError with the message unless `ok`."""
    if not ok:
        raise ClauseError(message)


#: (height, width) that divide by nothing convenient, tiny ones and strips among them.
ODD_SIZES = ((28, 28), (1, 3), (333, 500), (57, 411), (1000, 31), (225, 224), (9, 700), (420, 589))


@lru_cache(maxsize=64)
def natural_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 (H, W, 3): coloured noise with an amplitude of 1 / f, a few boxes and lines of text."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = 1 / np.maximum(np.hypot(fy, fx), 1 / max(height, width))
    planes = []
    for deviation in (45, 12, 12):
        noise = np.fft.rfft2(rng.normal(size=(height, width))) * amplitude
        field = np.fft.irfft2(noise, s=(height, width))
        planes.append(deviation * (field - field.mean()) / max(field.std(), 1e-9))
    luma, blue, red = planes
    rgb = np.stack([luma + 1.4 * red, luma - 0.34 * blue - 0.71 * red, luma + 1.77 * blue], -1)
    image = Image.fromarray((rgb + 128).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for line in range(0, height // 3, 14):
        draw.text((4, line), "Small text 0123456789", fill=(20, 20, 40))
    draw.rectangle((width // 2, height // 2, width * 3 // 4, height * 3 // 4), fill=(200, 60, 40))
    return np.asarray(image)  # read-only, as a cached array must be


@lru_cache(maxsize=64)
def clip_of(height: int, width: int, frames: int) -> np.ndarray:
    """uint8 (T, H, W, 3): a slow pan over a natural image, every frame with its own noise."""
    wide = natural_image(height, width + 2 * frames).astype(np.float64)
    rng = np.random.default_rng(1)
    pan = np.stack([wide[:, 2 * t : 2 * t + width] for t in range(frames)])
    noise = rng.normal(0, 2, pan.shape) if frames > 1 else 0.0
    clip = (pan + noise).clip(0, 255).astype(np.uint8)
    clip.setflags(write=False)
    return clip


def frames_per_cell(tokenizer: VisualTokenizer) -> int:
    """T of the tokenizer."""
    return tokenizer.plan(112, 112, 2).cell_shape[0]


def prepared(tokenizer: VisualTokenizer, frames: np.ndarray) -> tuple[Plan, torch.Tensor]:
    """The final plan and the cells of frames."""
    length, height, width, _ = frames.shape
    plan = tokenizer.refine(frames, tokenizer.plan(height, width, length))
    return plan, tokenizer.cells(frames, plan)
