"""Whitened DCT coefficients times one trainable weight, started exactly from a pixel embedding.

Shape legend: N cells, O embedding width, K columns of a cell (temporal band-major), P columns of
one temporal band.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from dct_tokenizer.basis import (
    BandSelection,
    DCTBasis,
    dct_matrix,
    normalised_rgb_to_ycbcr,
    spatial_matrix,
)
from dct_tokenizer.front_end import PATCH, PATCH_FRAMES, FrontEnd, check_cells
from dct_tokenizer.whitening import Statistics


def start_columns(weight: torch.Tensor, bands: BandSelection) -> torch.Tensor:
    """float64 (O, K): the pretrained Conv3d weight (O, 3, 2, 14, 14) expressed in coefficients.

    The coefficients that the pretrained embedding knows, the lowest 14 x 14 (x 2 in time), get the
    rotated weight times the gain between an orthonormal DCT of B samples and one of 14; all other
    columns are 0. The output is then the pretrained embedding of the ideally low-passed cell.
    """
    luma_from_rgb = torch.linalg.inv(normalised_rgb_to_ycbcr())
    spatial = dct_matrix(PATCH)
    # o: output, c: RGB, k: YCbCr, t/q: time and its band, a b / i j: pixels and their bands
    rotated = torch.einsum(
        "octab,ck,qt,ia,jb->oqkij",
        weight,
        luma_from_rgb,
        dct_matrix(PATCH_FRAMES),
        spatial,
        spatial,
    )
    gain = PATCH / bands.cell * math.sqrt(PATCH_FRAMES / bands.frames_per_cell)
    num_bands = min(PATCH_FRAMES, bands.temporal_keep)
    columns = weight.new_zeros(len(weight), bands.temporal_keep, bands.num_spatial)
    start = 0
    for plane, keep in enumerate(bands.keeps):
        block = weight.new_zeros(len(weight), num_bands, keep, keep)
        known = min(PATCH, keep)
        block[..., :known, :known] = gain * rotated[:, :num_bands, plane, :known, :known]
        columns[:, :num_bands, start : start + keep * keep] = block.flatten(2)
        start += keep * keep
    return columns.flatten(1)


class DCTFrontEnd(FrontEnd):
    """((coefficients - mean) / std) @ weight.T + bias.

    `weight` (O, K) holds the columns multiplied by std and `bias` (O,) the response to the mean, so
    whitening changes how fast each frequency learns and not what the module computes at the start.
    `mean` and `std` (K,) are persistent buffers: a checkpoint is read back with the statistics it
    was trained with.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, embed_dim: int, *, bands: BandSelection, stats: Statistics, center: bool
    ) -> None:
        super().__init__()
        self.bands = bands
        self.basis = DCTBasis(bands)
        self.register_buffer("mean", stats.mean.float())
        self.register_buffer("std", stats.std.float())
        self.weight = nn.Parameter(torch.empty(embed_dim, bands.num_columns))
        self.bias = nn.Parameter(torch.empty(embed_dim)) if center else None
        self.reset_parameters()

    def _start(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        columns = start_columns(weight, self.bands)
        values = {"weight": columns * self.std.double().cpu()}
        if self.bias is not None:
            values["bias"] = columns @ self.mean.double().cpu()
        return values

    def flops_per_cell(self, embed_dim: int, *, still: bool) -> int:
        pixels = 3 * self.bands.cell**2
        kept = 1 if still else self.bands.temporal_keep
        temporal = 0 if still else kept * self.bands.frames_per_cell * pixels
        columns = kept * self.bands.num_spatial
        return 2 * (temporal + columns * pixels + columns * embed_dim)

    @torch.no_grad()
    def folded(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        columns = self.weight.double().cpu() / self.std.double().cpu()
        temporal = dct_matrix(self.bands.frames_per_cell, self.bands.temporal_keep)
        by_band = columns.unflatten(1, (self.bands.temporal_keep, -1))
        weight = torch.einsum("oqp,qt,pcab->octab", by_band, temporal, spatial_matrix(self.bands))
        if self.bias is None:
            return weight, None
        return weight, self.bias.double().cpu() - columns @ self.mean.double().cpu()

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """(N, T', 3, B, B) -> (N, O)."""
        check_cells(cells, self.bands.frames_per_cell, self.bands.cell)
        with torch.autocast(cells.device.type, enabled=False):
            with torch.no_grad():
                coefficients = self.basis(cells)
                columns = coefficients.shape[1]
                white = (coefficients - self.mean[:columns]) / self.std[:columns]
            return F.linear(white.to(self.weight.dtype), self.weight[:, :columns], self.bias)
