"""The run that a Hugging Face folder stands for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from dct_tokenizer import preset_config
from dct_tokenizer.base import QWEN_MAX_PIXELS, QWEN_MIN_PIXELS
from dct_vl.model.families.qwen_vl.config import read_hf_config
from dct_vl.runs.config.schema import DataConfig, ModelConfig, RunConfig


def run_of_folder(folder: Path, tokenizer: str = "pixel") -> RunConfig:
    """What a run that started from the folder would have recorded.

    Raises:
        ValueError: the folder's files do not fit; says which.
    """
    config = read_hf_config(folder)
    # later releases of transformers write it as dtype
    dtype = getattr(config, "torch_dtype", None) or getattr(config, "dtype", None) or torch.float32
    names = dict.fromkeys((torch.bfloat16, "bfloat16"), "bf16")
    names |= dict.fromkeys((torch.float32, "float32"), "fp32")
    if dtype not in names:
        raise ValueError(f"{folder}/config.json says torch_dtype={dtype}; expected bf16 or fp32")
    bounds = _pixel_bounds(folder)
    return RunConfig(
        experiment_name=folder.name,
        tokenizer=preset_config(tokenizer),
        model=ModelConfig(path=str(folder), dtype=names[dtype]),
        data=DataConfig(path="", min_pixels=bounds[0], max_pixels=bounds[1]),
    )


def _pixel_bounds(folder: Path) -> tuple[int, int]:
    """(min_pixels, max_pixels) of the folder's processor; the stock ones where it says nothing."""
    path = folder / "preprocessor_config.json"
    try:
        settings: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
        # later releases of transformers leave the first two out, or null
        size = settings.get("size") or {}
        low = settings.get("min_pixels") or size.get("shortest_edge") or QWEN_MIN_PIXELS
        high = settings.get("max_pixels") or size.get("longest_edge") or QWEN_MAX_PIXELS
        fits = 0 < low <= high
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): fetch the file again") from error
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path} does not fit ({error}): fetch the file again") from error
    if not fits:
        raise ValueError(
            f"{path} says min_pixels={low} and max_pixels={high}; expected 0 < min_pixels <= "
            "max_pixels: correct them"
        )
    return low, high
