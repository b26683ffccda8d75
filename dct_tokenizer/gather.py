"""Statistics of coefficients from WebDataset shards, for whitening by measurement."""

from __future__ import annotations

import io
import math
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from dct_tokenizer.errors import TokenizerConfigError
from dct_tokenizer.families.block import BlockTokenizer
from dct_tokenizer.plan import PlanError
from dct_tokenizer.whitening import Statistics, natural_statistics

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
#: A column's deviation is not taken below this part of the median column's, so that a band that
#: happens to be empty in the sample is not amplified without bound.
STD_FLOOR = 1e-2


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Measured statistics and what they were measured on."""

    statistics: Statistics
    num_pictures: int
    num_cells: int
    #: Pictures that could not be decoded or planned.
    num_skipped: int


def pictures_in(shard_dir: Path) -> Iterator[bytes]:
    """The bytes of every picture in the tars of a folder, shard by shard in order of name.

    Raises:
        TokenizerConfigError: no tar in the folder.
    """
    shards = sorted(shard_dir.rglob("*.tar"))
    if not shards:
        raise TokenizerConfigError(f"{shard_dir}: no .tar files; pass the folder of the shards")
    for shard in shards:
        with tarfile.open(shard, "r|") as tar:
            for member in tar:
                if member.isfile() and member.name.lower().endswith(PICTURE_SUFFIXES):
                    content = tar.extractfile(member)
                    if content is not None:
                        yield content.read()


def gather_statistics(
    tokenizer: BlockTokenizer, pictures: Iterator[bytes], max_pictures: int
) -> Gathered:
    """Mean and deviation of every coefficient over the pictures, in float64.

    Still pictures say nothing about motion: temporal bands beyond the first take their deviation
    relative to the first from the built-in model, and mean 0.

    Raises:
        TokenizerConfigError: not a single usable picture.
    """
    bands = tokenizer.bands
    total = torch.zeros(bands.num_spatial, dtype=torch.float64)
    squares = torch.zeros_like(total)
    num_cells = num_pictures = num_skipped = 0
    for content in pictures:
        if num_pictures == max_pictures:
            break
        try:
            frames = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))[None]
            plan = tokenizer.plan(frames.shape[1], frames.shape[2])
        except (OSError, UnidentifiedImageError, PlanError, Image.DecompressionBombError):
            num_skipped += 1
            continue
        first_band = tokenizer.encode(tokenizer.cells(frames, plan))[:, : bands.num_spatial]
        total += first_band.double().sum(0)
        squares += first_band.double().square().sum(0)
        num_cells += plan.num_cells
        num_pictures += 1
    if not num_cells:
        raise TokenizerConfigError(
            f"no usable picture ({num_skipped} skipped); expected {', '.join(PICTURE_SUFFIXES)} "
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
        num_pictures=num_pictures,
        num_cells=num_cells,
        num_skipped=num_skipped,
    )
