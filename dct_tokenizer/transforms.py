"""The linear maps between RGB pixels and DCT coefficients, in float64."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

#: CLIP's normalisation, which Qwen2-VL's processor applies to RGB / 255.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

#: Full-range BT.601 luma and chroma differences (ITU-T T.871, JFIF), rows Y, Cb, Cr.
RGB_TO_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.299 / 1.772, -0.587 / 1.772, 0.5),
    (0.5, -0.587 / 1.402, -0.114 / 1.402),
)


def dct_matrix(size: int, keep: int | None = None) -> torch.Tensor:
    """float64 (keep, size) first rows of the orthonormal DCT-II (scipy's `norm="ortho"`)."""
    return _dct_matrix(size, size if keep is None else keep).clone()


@lru_cache(maxsize=256)
def _dct_matrix(size: int, keep: int) -> torch.Tensor:
    """Its cosines take longer than a small picture's transform."""
    k = torch.arange(keep, dtype=torch.float64)[:, None]
    i = torch.arange(size, dtype=torch.float64)[None]
    matrix = torch.cos(math.pi * (2 * i + 1) * k / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def clip_mean_std() -> tuple[torch.Tensor, torch.Tensor]:
    """float64 (3,) mean and standard deviation of RGB in 0..1."""
    return (
        torch.tensor(CLIP_MEAN, dtype=torch.float64),
        torch.tensor(CLIP_STD, dtype=torch.float64),
    )


def normalised_rgb_to_ycbcr() -> torch.Tensor:
    """float64 (3, 3): CLIP-normalised RGB to YCbCr in units of CLIP's mean deviation.

    The channel deviations are put back before the colour transform, so that a grey pixel has no
    chroma whatever its brightness (up to the constant of the mean) and cutting chroma bands never
    touches luma.
    """
    _, std = clip_mean_std()
    return torch.tensor(RGB_TO_YCBCR, dtype=torch.float64) * (std / std.mean())
