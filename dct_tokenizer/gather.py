"""Measure the mean and deviation of DCT coefficients on the images of shards."""

from __future__ import annotations

import math
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from dct_tokenizer.base import VisualTokenizer
from dct_tokenizer.basis import BandSelection
from dct_tokenizer.decode import decode_rgb
from dct_tokenizer.errors import TokenizerConfigError
from dct_tokenizer.plan import PlanError
from dct_tokenizer.upright import ImageError
from dct_tokenizer.whitening import Statistics, natural_statistics

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
#: A column's deviation is not taken below this part of the median column's, so that a band that
#: happens to be empty in the sample is not amplified without bound.
STD_FLOOR = 1e-2


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Measured statistics and what they were measured on."""

    statistics: Statistics
    num_images: int
    num_cells: int
    #: Images that could not be decoded or planned.
    num_skipped: int


def images_in(shard_dir: Path) -> Iterator[bytes]:
    """The bytes of every image in the tars of a folder, shard by shard in order of name.

    Raises:
        TokenizerConfigError: no tar in the folder.
    """
    shards = sorted(shard_dir.rglob("*.tar"))
    if not shards:
        raise TokenizerConfigError(f"{shard_dir}: no .tar files; pass the folder of the shards")
    for shard in shards:
        # joined tars and damaged headers are read past
        with tarfile.open(shard, "r|", ignore_zeros=True) as tar:
            for member in tar:
                if member.isfile() and member.name.lower().endswith(IMAGE_SUFFIXES):
                    content = tar.extractfile(member)
                    if content is not None:
                        yield content.read()


def gather_statistics(
    tokenizer: VisualTokenizer, bands: BandSelection, images: Iterator[bytes], max_images: int
) -> Gathered:
    """Mean and deviation of every coefficient over the images, in float64.

    Still images say nothing about motion: temporal bands beyond the first take their deviation
    relative to the first from the built-in model, and mean 0.

    Args:
        tokenizer: its `encode` gives the coefficients of `bands`.

    Raises:
        TokenizerConfigError: not a single usable image.
    """
    total = torch.zeros(bands.num_spatial, dtype=torch.float64)
    squares = torch.zeros_like(total)
    num_cells = num_images = num_skipped = 0
    for content in images:
        if num_images == max_images:
            break
        try:
            frames = decode_rgb(content)
            plan = tokenizer.plan(frames.shape[1], frames.shape[2])
        except (ImageError, PlanError):
            num_skipped += 1
            continue
        first_band = tokenizer.encode(tokenizer.cells(frames, plan))[:, : bands.num_spatial]
        total += first_band.double().sum(0)
        squares += first_band.double().square().sum(0)
        num_cells += plan.num_cells
        num_images += 1
    if not num_cells:
        raise TokenizerConfigError(
            f"no usable image ({num_skipped} skipped); expected {', '.join(IMAGE_SUFFIXES)} "
            "members in the shards"
        )
    mean = total / num_cells
    std = (squares / num_cells - mean.square()).clamp_min(0).sqrt()
    std = std.clamp_min(STD_FLOOR * std.median().clamp_min(math.sqrt(1e-6)))
    model = natural_statistics(bands).std.unflatten(0, (bands.temporal_keep, -1))
    by_band = std * model / model[0]
    means = torch.zeros_like(by_band)
    means[0] = mean
    return Gathered(
        statistics=Statistics(mean=means.flatten(), std=by_band.flatten()),
        num_images=num_images,
        num_cells=num_cells,
        num_skipped=num_skipped,
    )
