"""Write a whole Megatron module as a Hugging Face folder."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from dct_tokenizer import VisualTokenizer
from evaluation.export.folder import (
    copy_text_files,
    model_settings,
    processor_settings,
    write_json,
)
from evaluation.export.plain import folded_patch_embed, why_not_plain
from evaluation.export.tensors import ExportError, megatron_groups, stock_shapes
from evaluation.export.writer import MAX_SHARD_BYTES, write_tensors
from training.model.mcore import TokenizerQwen2VL


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a folder is written."""

    dtype: torch.dtype
    max_shard_bytes: int = MAX_SHARD_BYTES


def export_module(
    module: TokenizerQwen2VL,
    visual: VisualTokenizer,
    base: str | Path,
    out: str | Path,
    options: ExportOptions,
) -> int:
    """Write a folder that plain transformers loads.

    It is made under another name beside its place and renamed when it is whole.

    Args:
        module: a whole model on any device.
        visual: its tokenizer, with the pixel bounds to write.
        base: the Hugging Face folder that the run started from.
        out: a new or empty folder.
        options: dtype and file sizes.

    Returns:
        Bytes of the weights.

    Raises:
        ExportError: `out` holds something, the tokenizer does not fold into a stock Qwen2-VL, or
            the module does not fit the base folder's config.json.
    """
    base, out = Path(base), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists and is not an empty folder: name a new one")
    reason = why_not_plain(visual)
    if reason is not None:
        raise ExportError(f"{visual.name} is no plain Qwen2-VL: {reason}")
    unfinished = out.parent / f".{out.name}-unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        copy_text_files(base, unfinished)
        write_json(unfinished / "config.json", model_settings(base, options.dtype))
        write_json(unfinished / "preprocessor_config.json", processor_settings(base, visual))
        expected = stock_shapes(base)
        groups = [
            *megatron_groups(module, expected, options.dtype),
            folded_patch_embed(module.vision_model.front_end, options.dtype),
        ]
        num_bytes = write_tensors(
            unfinished, groups, expected, max_shard_bytes=options.max_shard_bytes
        )
        if out.exists():
            out.rmdir()
        os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return num_bytes
