"""The block family: DCT coefficients of larger cells, with an exact start."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from dct_tokenizer.base import GridTokenizer
from dct_tokenizer.basis import BandSelection, cpu_basis, reconstruct
from dct_tokenizer.dct_front_end import DCTFrontEnd
from dct_tokenizer.errors import TokenizerConfigError
from dct_tokenizer.front_end import PATCH, PATCH_FRAMES
from dct_tokenizer.pixels import join_cells, to_uint8
from dct_tokenizer.plan import Plan
from dct_tokenizer.registry import register_family
from dct_tokenizer.whitening import NATURAL, Statistics, load_statistics, natural_statistics


@register_family("block")
@dataclass(frozen=True, kw_only=True)
class BlockTokenizer(GridTokenizer):
    """Cells of B x B pixels x T frames as orthonormal DCT-II coefficients in YCbCr."""

    family: ClassVar[str]

    #: Lowest bands kept per spatial axis, 1..cell.
    luma_keep: int
    chroma_keep: int
    #: T, even.
    frames_per_cell: int = PATCH_FRAMES
    #: Lowest temporal bands kept, 1..frames_per_cell.
    temporal_keep: int = PATCH_FRAMES
    #: Divide every coefficient by its deviation, so that all frequencies learn at the same rate.
    whiten: bool = True
    #: Subtract every coefficient's mean; needs a bias, which plain Qwen2-VL's convolution lacks.
    center: bool = True
    #: "natural" for the built-in model of images, or a JSON file of `dct_tokenizer stats`.
    statistics: str = NATURAL

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds = {
            "luma_keep": self.cell,
            "chroma_keep": self.cell,
            "temporal_keep": self.frames_per_cell,
        }
        for key, bound in bounds.items():
            value = getattr(self, key)
            if not 1 <= value <= bound:
                raise TokenizerConfigError(f"{self.name}: {key}={value}; expected 1..{bound}")
        if self.frames_per_cell < PATCH_FRAMES or self.frames_per_cell % PATCH_FRAMES:
            raise TokenizerConfigError(
                f"{self.name}: frames_per_cell={self.frames_per_cell}; expected a multiple of "
                f"{PATCH_FRAMES}, so that M-RoPE ids keep the clip's time scale"
            )

    @property
    def bands(self) -> BandSelection:
        return BandSelection(
            cell=self.cell,
            luma_keep=self.luma_keep,
            chroma_keep=self.chroma_keep,
            frames_per_cell=self.frames_per_cell,
            temporal_keep=self.temporal_keep,
        )

    @property
    def cell_frames(self) -> int:
        return self.frames_per_cell

    @property
    def exact_start(self) -> bool:
        """True where all bands that the pretrained embedding can see are kept."""
        known = min(PATCH, self.cell)
        return min(self.luma_keep, self.chroma_keep) >= known and self.temporal_keep >= PATCH_FRAMES

    @property
    def psnr_bound(self) -> float:
        """Exact with all bands; otherwise what the lowest bands keep of natural images."""
        return math.inf if self.bands.is_complete else 20.0

    def whitening_statistics(self) -> Statistics:
        """Mean and deviation that the front end applies: 0 and 1 where switched off."""
        if self.statistics == NATURAL:
            stats = natural_statistics(self.bands)
        else:
            stats = load_statistics(Path(self.statistics), self.bands)
        return Statistics(
            mean=stats.mean if self.center else torch.zeros_like(stats.mean),
            std=stats.std if self.whiten else torch.ones_like(stats.std),
        )

    def random_front_end(self, embed_dim: int) -> DCTFrontEnd:
        """`weight` (O, K), `bias` (O,) where `center` is on."""
        return DCTFrontEnd(
            embed_dim, bands=self.bands, stats=self.whitening_statistics(), center=self.center
        )

    @torch.no_grad()
    def encode(self, cells: torch.Tensor) -> torch.Tensor:
        """float32 (N, K): temporal band-major; in a band the luma, Cb and Cr squares in turn."""
        coefficients = cpu_basis(self.bands)(cells)
        return F.pad(coefficients, (0, self.bands.num_columns - coefficients.shape[1]))

    @torch.no_grad()
    def reconstruct(self, coefficients: torch.Tensor) -> torch.Tensor:
        """float32 (N, T, 3, B, B) RGB in 0..255 of coefficients (N, K), dropped bands at 0."""
        return reconstruct(coefficients, self.bands)

    def decode(self, coefficients: torch.Tensor, plan: Plan) -> np.ndarray:
        """uint8 (T, H, W, 3) with the dropped bands at 0."""
        pixels = self.reconstruct(coefficients)[:, : plan.cell_shape[0]]
        return join_cells(to_uint8(pixels), plan).numpy()
