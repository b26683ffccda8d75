"""uint8 cells to ViT inputs: the contract of every front end, and the stock pixel embedding.

Shape legend: N cells, T frames per cell, T' frames on the wire (T, or 1 for a still image),
B cell side, O embedding width.
"""

from __future__ import annotations

import abc
import math
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from dct_tokenizer.basis import Float32Buffers, clip_mean_std

#: Patch side and frames of the pretrained Conv3d.
PATCH = 14
PATCH_FRAMES = 2


class FrontEnd(Float32Buffers, abc.ABC):
    """cells (N, T', 3, B, B) uint8, or floats holding 0..255, -> (N, O) in the dtype of `weight`.

    A still image (T' = 1) gives what T equal frames would give, at the cost of one. Only
    `weight` and `bias` receive gradients. Everything before the weight runs in float32, whatever
    the parameters' dtype or an enclosing autocast. Parameters are replicated over tensor-parallel
    ranks.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    @abc.abstractmethod
    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """(N, T', 3, B, B) -> (N, O)."""

    @abc.abstractmethod
    def _start(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Parameter values in float64 that start from a float64 Conv3d weight (O, 3, 2, 14, 14)."""

    @torch.no_grad()
    def load_pretrained(self, weight: torch.Tensor) -> None:
        """Start from the patch embedding of a Qwen2-VL or Qwen2.5-VL checkpoint, in place.

        Args:
            weight: Conv3d weight (O, 3, 2, 14, 14), any float dtype. The start is computed in
                float64 and rounded through float32 to the dtype of the parameters.

        Raises:
            ValueError: another shape.
        """
        expected = (self.weight.shape[0], 3, PATCH_FRAMES, PATCH, PATCH)
        if tuple(weight.shape) != expected:
            raise ValueError(
                f"pretrained weight has shape {tuple(weight.shape)}; expected {expected}, the "
                "Conv3d weight `visual.patch_embed.proj.weight` of a Qwen2-VL checkpoint"
            )
        for name, value in self._start(weight.detach().double().cpu()).items():
            parameter = getattr(self, name)
            parameter.copy_(value.float().to(parameter.device))

    @abc.abstractmethod
    def folded(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """float64 Conv3d weight (O, 3, T, B, B) and bias (O,) on CLIP-normalised pixels."""

    @abc.abstractmethod
    def flops_per_cell(self, embed_dim: int, *, still: bool) -> int:
        """FLOPs of a cell's way to an embedding of width `embed_dim`."""

    def reset_parameters(self) -> None:
        """A random start: the Conv3d default's, carried over as a pretrained weight would be.

        From one seed every tokenizer therefore starts from the same embedding.
        """
        weight = torch.empty(self.weight.shape[0], 3, PATCH_FRAMES, PATCH, PATCH)
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        self.load_pretrained(weight)


def check_cells(cells: torch.Tensor, frames_per_cell: int, cell: int) -> None:
    """Raises ValueError where cells are not (N, 1 or T, 3, B, B)."""
    ok = cells.ndim == 5 and cells.shape[1] in (1, frames_per_cell)
    if not ok or cells.shape[2:] != (3, cell, cell):
        raise ValueError(
            f"cells have shape {tuple(cells.shape)}; expected (num_cells, 1 or {frames_per_cell}, "
            f"3, {cell}, {cell}): were they cut by another tokenizer?"
        )


def resize_matrix(size: int) -> torch.Tensor:
    """float64 (size, 14): bilinear enlargement of 14 samples to `size`, half-pixel centres."""
    identity = torch.eye(PATCH, dtype=torch.float64)[None]
    return F.interpolate(identity, size=size, mode="linear", align_corners=False)[0].T


class PixelFrontEnd(FrontEnd):
    """CLIP-normalised pixels times a Conv3d weight (O, 3, T, B, B): Qwen2-VL's own patch embedding.

    For B other than 14 the pretrained weight is carried over by FlexiViT's pseudo-inverse resize
    (arXiv 2212.08013, eq. 3): the resized weight gives on a bilinearly enlarged patch what the
    original gives on the patch.
    """

    inverse_std: torch.Tensor
    shift: torch.Tensor

    def __init__(self, embed_dim: int, *, cell: int) -> None:
        super().__init__()
        self.cell = cell
        mean, std = clip_mean_std()
        shape = (3, 1, 1)
        self.register_buffer("inverse_std", (1 / (255 * std)).float().view(shape), persistent=False)
        self.register_buffer("shift", (mean / std).float().view(shape), persistent=False)
        self.weight = nn.Parameter(torch.empty(embed_dim, 3, PATCH_FRAMES, cell, cell))
        self.bias = None
        self.reset_parameters()

    def _start(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.cell == PATCH:
            return {"weight": weight}
        # pinv(R.T) of the enlargement R per axis: <R x, pinv(R.T) w> = <x, w>.
        carry = torch.linalg.pinv(resize_matrix(self.cell).T)
        return {"weight": torch.einsum("octij,ai,bj->octab", weight, carry, carry)}

    def flops_per_cell(self, embed_dim: int, *, still: bool) -> int:
        return 2 * embed_dim * self.weight[0].numel() // (PATCH_FRAMES if still else 1)

    @torch.no_grad()
    def folded(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.weight.double().cpu(), None

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """(N, T', 3, B, B) -> (N, O)."""
        check_cells(cells, PATCH_FRAMES, self.cell)
        with torch.autocast(cells.device.type, enabled=False):
            with torch.no_grad():
                pixels = cells.float() * self.inverse_std - self.shift
                pixels = pixels.to(self.weight.dtype).transpose(1, 2).flatten(1)
            weight: torch.Tensor = self.weight
            if cells.shape[1] == 1:
                # Two equal frames meet the sum of both frames' weights.
                weight = weight.float().sum(2).to(weight.dtype)
            return F.linear(pixels, weight.flatten(1))


def fold(
    front_end: FrontEnd, *, inputs: Literal["rgb", "normalised"] = "rgb", still: bool = False
) -> nn.Conv3d:
    """A float32 Conv3d with stride = kernel that computes what the front end computes.

    Args:
        front_end: of any preset whose cells tile the image.
        inputs: "rgb" for 0..255 pixels, "normalised" for the output of Qwen2-VL's processor; with
            the latter and without a bias of its own the result is a stock patch embedding.
        still: a kernel of one frame, for still images, instead of T frames.

    Returns:
        Conv3d from (batch, 3, frames, H, W) to (batch, O, frames / T, H / B, W / B), on the CPU.
    """
    weight, bias = front_end.folded()
    if inputs == "rgb":
        mean, std = (v[:, None, None, None] for v in clip_mean_std())
        constant = -(weight * (mean / std)).sum((1, 2, 3, 4))
        weight = weight / (255 * std)
        bias = constant if bias is None else bias + constant
    if still:
        weight = weight.sum(2, keepdim=True)
    kernel = (weight.shape[2], weight.shape[3], weight.shape[4])
    conv = nn.Conv3d(3, len(weight), kernel, stride=kernel, bias=bias is not None)
    with torch.no_grad():
        conv.weight.copy_(weight.float())
        if conv.bias is not None and bias is not None:
            conv.bias.copy_(bias.float())
    return conv
