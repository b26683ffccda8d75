"""A front end as one plain convolution, for export and for inference without this package."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from dct_tokenizer.front_end import FrontEnd
from dct_tokenizer.transforms import clip_mean_std


def fold(
    front_end: FrontEnd, *, inputs: Literal["rgb", "normalised"] = "rgb", still: bool = False
) -> nn.Conv3d:
    """A float32 Conv3d with stride = kernel that computes what the front end computes.

    Args:
        front_end: of any preset whose cells tile the picture.
        inputs: "rgb" for 0..255 pixels, "normalised" for the output of Qwen2-VL's processor; with
            the latter and without a bias of its own the result is a stock patch embedding.
        still: a kernel of one frame, for still pictures, instead of T frames.

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
