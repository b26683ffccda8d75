"""Write a whole Megatron module as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dct_tokenizer import VisualTokenizer
from dct_vl.export.bundled import bundled_model_settings, bundled_processor_settings, cell_embedding
from dct_vl.export.code import write_code
from dct_vl.export.folder import (
    copy_text_files,
    model_settings,
    processor_settings,
    whole_folder,
    write_json,
)
from dct_vl.export.plain import folded_patch_embed, why_not_plain
from dct_vl.export.tensors import megatron_groups, stock_shapes
from dct_vl.export.writer import MAX_SHARD_BYTES, write_tensors
from dct_vl.model.families.qwen_vl.model import QwenVLWithVisualTokenizer
from dct_vl.model.families.qwen_vl.weights import PATCH_EMBED
from dct_vl.model.lora import merge_lora


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a folder is written."""

    dtype: torch.dtype
    max_shard_bytes: int = MAX_SHARD_BYTES


def export_module(
    module: QwenVLWithVisualTokenizer,
    visual: VisualTokenizer,
    base: str | Path,
    out: str | Path,
    options: ExportOptions,
    *,
    add_files: Callable[[Path], None] = lambda folder: None,
) -> int:
    """Write a folder that transformers loads without this project.

    Where the tokenizer folds into the stock patch embedding it is a plain Qwen2-VL or Qwen2.5-VL;
    otherwise it brings the tokenizer's code along, for `trust_remote_code=True`. The folder is made
    under another name beside its place and renamed when it is whole.

    Args:
        module: a whole model on any device; adapters are merged into it.
        visual: its tokenizer, with the pixel bounds to write.
        base: the Hugging Face folder that the run started from.
        out: a new or empty folder.
        options: dtype and file sizes.
        add_files: writes what else belongs into the folder, before that has its name.

    Returns:
        Bytes of the weights.

    Raises:
        ExportError: `out` holds something, or the module does not fit the base folder's
            config.json.
    """
    base = Path(base)
    with whole_folder(out) as unfinished:
        copy_text_files(base, unfinished)
        merge_lora(module)
        stock = stock_shapes(base)
        groups = list(megatron_groups(module, stock, options.dtype))
        reason = why_not_plain(visual)
        if reason is None:
            settings = model_settings(base, options.dtype)
            processor = processor_settings(base, visual)
            front_end = [folded_patch_embed(module.vision_model.front_end, options.dtype)]
        else:
            write_code(unfinished)
            settings = bundled_model_settings(base, options.dtype, visual)
            processor = bundled_processor_settings(base, visual)
            front_end = cell_embedding(module.vision_model.front_end, options.dtype)
        write_json(unfinished / "config.json", settings)
        write_json(unfinished / "preprocessor_config.json", processor)
        expected = {name: shape for name, shape in stock.items() if name != PATCH_EMBED}
        for group in front_end:
            expected.update(group.shapes)
        groups += front_end
        num_bytes = write_tensors(
            unfinished, groups, expected, max_shard_bytes=options.max_shard_bytes
        )
        add_files(unfinished)
    return num_bytes
