"""Mean and deviation per coefficient: from a model of natural images, or from a statistics file.

Images are well described by an isotropic covariance that falls off with distance (Ruderman and
Bialek 1994, "Statistics of natural images": power close to 1/f²). The variance of every DCT
coefficient of every cell size follows from it in closed form, so a preset of any shape is whitened
without a dataset. The constants were fitted to the variances of the 14- and 28-pixel coefficients
of the two photos that scikit-learn carries (`sklearn.datasets.load_sample_images`), to 0.5 in the
logarithm. `python -m dct_tokenizer stats SHARDS` replaces them by measured ones.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from dct_tokenizer.basis import BandSelection, dct_matrix
from dct_tokenizer.errors import TokenizerConfigError

#: Value of a preset's `statistics` key that stands for the model of this module.
NATURAL = "natural"


@dataclass(frozen=True, kw_only=True)
class CovarianceModel:
    """Covariance of two pixels d apart: variance * exp(-(d / length) ** exponent)."""

    #: In squared units of CLIP-normalised pixels.
    variance: float
    #: In pixels.
    length: float
    exponent: float


LUMA = CovarianceModel(variance=1.2, length=45.0, exponent=0.8)
CHROMA = CovarianceModel(variance=0.085, length=16.0, exponent=1.4)
#: Uncorrelated variance per pixel: sensor noise, JPEG, print. It bounds how far a band is raised.
NOISE_VARIANCE = 1e-3
#: Frames (at Qwen2-VL's 2 a second) over which a clip decorrelates by a factor e.
CORRELATION_FRAMES = 4.0


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Per-coefficient statistics of one band selection, before whitening."""

    #: float64 (K,); temporal AC bands have mean 0 by symmetry under reversal of time.
    mean: torch.Tensor
    #: float64 (K,), all positive.
    std: torch.Tensor


def _basis_autocorrelation(size: int, keep: int) -> np.ndarray:
    """(keep, 2 * size - 1): autocorrelation of each DCT row over lags -(size-1)..size-1."""
    return np.stack([np.correlate(row, row, "full") for row in dct_matrix(size, keep).numpy()])


def natural_statistics(bands: BandSelection) -> Statistics:
    """The model's statistics: mean 0, std from the covariance and the DCT in closed form."""
    lags = np.arange(1 - bands.cell, bands.cell)
    distance = np.hypot(lags[:, None], lags[None])
    columns = []
    for plane, keep in enumerate(bands.keeps):
        model = CHROMA if plane else LUMA
        covariance = model.variance * np.exp(-((distance / model.length) ** model.exponent))
        covariance[distance == 0] += NOISE_VARIANCE
        rows = _basis_autocorrelation(bands.cell, keep)
        columns.append((rows @ covariance @ rows.T).ravel())
    spatial = np.concatenate(columns)
    time_lags = np.abs(np.arange(1 - bands.frames_per_cell, bands.frames_per_cell))
    rows = _basis_autocorrelation(bands.frames_per_cell, bands.temporal_keep)
    temporal = rows @ np.exp(-time_lags / CORRELATION_FRAMES)
    std = torch.from_numpy(np.sqrt(np.outer(temporal, spatial)).ravel())
    return Statistics(mean=torch.zeros_like(std), std=std)


def save_statistics(path: Path, bands: BandSelection, stats: Statistics, source: str) -> None:
    """Write a statistics file (JSON): the bands it holds for, where it comes from, mean and std."""
    path.write_text(
        json.dumps(
            {
                "bands": asdict(bands),
                "source": source,
                "mean": [float(f"{v:.6g}") for v in stats.mean.tolist()],
                "std": [float(f"{v:.6g}") for v in stats.std.tolist()],
            }
        )
        + "\n"
    )


def load_statistics(path: Path, bands: BandSelection) -> Statistics:
    """Statistics of a file. Raises TokenizerConfigError where it is missing or of other bands."""
    if not path.is_file():
        raise TokenizerConfigError(
            f"statistics={path}: no such file; expected {NATURAL!r} or a JSON file written by "
            "`python -m dct_tokenizer stats`"
        )
    content = json.loads(path.read_text())
    if content["bands"] != asdict(bands):
        raise TokenizerConfigError(
            f"statistics={path} holds for {content['bands']}, the tokenizer has {asdict(bands)}: "
            "gather them again with `python -m dct_tokenizer stats`"
        )
    mean, std = (torch.tensor(content[key], dtype=torch.float64) for key in ("mean", "std"))
    return Statistics(mean=mean, std=std)
