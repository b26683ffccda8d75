"""Pictures as a run's tokenizer shows them to its model, for pages."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dct_tokenizer import VisualTokenizer
from dct_vl.training.report import picture_uri

#: longer sides are reduced to this many pixels, so that pages stay small
_LONGEST_SIDE = 512


def look(tokenizer: VisualTokenizer, frames: np.ndarray) -> np.ndarray:
    """What the model is given of a picture (1, H, W, 3) uint8: (h, w, 3) uint8, unscaled."""
    plan = tokenizer.plan(*frames.shape[1:3])
    plan = tokenizer.refine(frames, plan)
    return tokenizer.seen(frames, plan)[0]


def reduced_uri(picture: np.ndarray) -> str:
    """A data: address of a picture (H, W, 3) uint8, made smaller where it is large."""
    height, width = picture.shape[:2]
    scale = _LONGEST_SIDE / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    return picture_uri(picture)
