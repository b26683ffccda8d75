"""The fixed half of the front end: uint8 cells to selected DCT coefficients, one matmul.

The linear maps between RGB pixels and coefficients are made in float64.

Shape legend: N cells, T frames per cell, T' frames on the wire (T, or 1 for a still image),
B cell side, Q temporal bands, P spatial columns (luma², chroma², chroma²), K = Q * P.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

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
    """Cached: the cosines take longer than the transform of a small image."""
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


#: Subtracted before the matmul, so that float32 rounding of the brightness stays out of the detail.
MID_GREY = 128


@dataclass(frozen=True, kw_only=True)
class BandSelection:
    """Which coefficients of a cell are kept: the lowest of each axis."""

    #: B: cell side in pixels.
    cell: int
    #: Luma and chroma bands kept per spatial axis, 1..cell.
    luma_keep: int
    chroma_keep: int
    #: T: frames in a cell.
    frames_per_cell: int
    #: Q: temporal bands kept, 1..frames_per_cell.
    temporal_keep: int

    @property
    def keeps(self) -> tuple[int, int, int]:
        """Bands per axis of Y, Cb and Cr."""
        return self.luma_keep, self.chroma_keep, self.chroma_keep

    @property
    def num_spatial(self) -> int:
        """P: columns of one temporal band."""
        return sum(keep * keep for keep in self.keeps)

    @property
    def num_columns(self) -> int:
        """K: columns of a cell."""
        return self.temporal_keep * self.num_spatial

    @property
    def is_complete(self) -> bool:
        return (self.luma_keep, self.chroma_keep, self.temporal_keep) == (
            self.cell,
            self.cell,
            self.frames_per_cell,
        )


class Float32Buffers(nn.Module):
    """A module whose own buffers keep float32 under .bfloat16() / .half() and still change device.

    Coefficients span four orders of magnitude: in bf16 the rounding of the mean brightness would
    drown the fine detail.
    """

    def _apply(self, fn, recurse=True):
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self._buffers[name]
            if buffer is not None and after is not None and after.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(after.device)
        return self


def spatial_matrix(bands: BandSelection) -> torch.Tensor:
    """float64 (P, 3, B, B): CLIP-normalised RGB cell to kept YCbCr coefficients, raster order."""
    colour = normalised_rgb_to_ycbcr()
    blocks = []
    for plane, keep in enumerate(bands.keeps):
        dct = dct_matrix(bands.cell, keep)
        blocks.append(torch.einsum("c,ia,jb->ijcab", colour[plane], dct, dct).flatten(0, 1))
    return torch.cat(blocks)


class DCTBasis(Float32Buffers):
    """uint8 cells (N, T', 3, B, B) -> float32 coefficients (N, Q' * P), before whitening.

    Q' = Q for clips and 1 for still images, whose frames are all equal: their temporal AC
    columns are exactly 0 and are neither computed nor returned. Where TF32 matmuls are allowed
    on the GPU, coefficients are rounded to 10 bits of the largest, as bf16 inputs would be.
    """

    spatial: torch.Tensor
    offset: torch.Tensor
    temporal: torch.Tensor

    def __init__(self, bands: BandSelection) -> None:
        super().__init__()
        self.bands = bands
        mean, std = clip_mean_std()
        spatial = spatial_matrix(bands) / (255 * std[:, None, None])
        offset = spatial.sum((2, 3)) @ (MID_GREY - 255 * mean)
        temporal = dct_matrix(bands.frames_per_cell, bands.temporal_keep)
        self.register_buffer("spatial", spatial.flatten(1).float(), persistent=False)
        self.register_buffer("offset", offset.float(), persistent=False)
        self.register_buffer("temporal", temporal.float(), persistent=False)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """(N, T', 3, B, B) uint8, or floats holding 0..255, to float32 (N, Q' * P)."""
        num_cells, frames = cells.shape[:2]
        pixels = cells.reshape(num_cells, frames, -1).float() - MID_GREY
        if frames == 1:
            # T equal frames: the temporal DC coefficient is sqrt(T) times the frame.
            gain = self.bands.frames_per_cell**0.5
            return torch.addmm(self.offset, pixels[:, 0], self.spatial.T).mul_(gain)
        bands = torch.einsum("qt,ntx->nqx", self.temporal, pixels)
        coefficients = bands @ self.spatial.T
        # The offset is a constant over time, hence only in the temporal DC band.
        coefficients[:, 0] += self.offset * self.bands.frames_per_cell**0.5
        return coefficients.flatten(1)


@lru_cache(maxsize=32)
def cpu_basis(bands: BandSelection) -> DCTBasis:
    """The basis on the CPU, shared by every tokenizer of the same bands in this process."""
    return DCTBasis(bands)


def reconstruct(coefficients: torch.Tensor, bands: BandSelection) -> torch.Tensor:
    """0..255 float32 RGB (N, T, 3, B, B) of coefficients (N, K), dropped bands taken as 0."""
    num_cells, size = len(coefficients), bands.cell
    by_band = coefficients.float().reshape(num_cells, bands.temporal_keep, bands.num_spatial)
    planes, start = [], 0
    for keep in bands.keeps:
        block = by_band[..., start : start + keep * keep].unflatten(-1, (keep, keep))
        dct = dct_matrix(size, keep).float()
        planes.append(torch.einsum("nqij,ia,jb->nqab", block, dct, dct))
        start += keep * keep
    temporal = dct_matrix(bands.frames_per_cell, bands.temporal_keep).float()
    colour = torch.linalg.inv(normalised_rgb_to_ycbcr()).float()
    normalised = torch.einsum("qt,ck,nqkab->ntcab", temporal, colour, torch.stack(planes, 2))
    mean, std = (v.float()[:, None, None] for v in clip_mean_std())
    return (normalised * std + mean) * 255
