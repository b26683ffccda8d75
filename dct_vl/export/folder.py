"""The folder to write, and the files beside the weights, from the folder the run started from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dct_tokenizer import VisualTokenizer
from dct_vl.export.tensors import ExportError
from dct_vl.model.families.qwen_vl.config import MODEL_TYPES
from dct_vl.runs.result_files import read_object

#: copied as they are, where they exist
_COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
    "LICENSE",
)
#: `model_type` → classes of transformers for model and processor
_CLASSES = {
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", "Qwen2VLProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor"),
}
#: of a stock model, for a base folder that lacks the file; `processor_class` is missing
_STOCK_PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}


def check_place(out: str | Path) -> Path:
    """The folder to write, which must be new or empty; raises ExportError where it is not."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists and is not an empty folder: name a new one")
    return out


@contextmanager
def whole_folder(out: str | Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends, and is gone after an error.

    Raises:
        ExportError: `out` holds something, or cannot be made.
    """
    out = check_place(out)
    unfinished = out.parent / f".{out.name}-unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise ExportError(f"{out} cannot be made ({error}): name another folder") from error
    try:
        yield unfinished
        if out.exists():
            out.rmdir()
        os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented, keys sorted, as transformers writes them."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def copy_text_files(base: Path, out: Path) -> None:
    """Tokenizer, chat template and generation settings of the base folder."""
    for name in _COPIED:
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)
    if not (out / "tokenizer.json").is_file() and not (out / "vocab.json").is_file():
        raise ExportError(f"{base} has no tokenizer.json and no vocab.json: no tokenizer to copy")


def model_type(base: Path) -> str:
    """What the base folder's config.json calls its model: a key of `MODEL_TYPES`.

    Raises:
        ValueError: another model, or no config.json.
    """
    found = read_object(base / "config.json").get("model_type")
    if found not in MODEL_TYPES:
        known = " or ".join(MODEL_TYPES)
        raise ExportError(f"{base / 'config.json'} describes {found!r}; expected {known}")
    return str(found)


def model_settings(base: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The base folder's config.json with the dtype of what is written."""
    config = read_object(base / "config.json")
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    config["architectures"] = [_CLASSES[model_type(base)][0]]
    return config


def processor_settings(base: Path, visual: VisualTokenizer) -> dict[str, Any]:
    """The base folder's preprocessor_config.json with the pixel bounds of the run."""
    path = base / "preprocessor_config.json"
    stock = {**_STOCK_PROCESSOR, "processor_class": _CLASSES[model_type(base)][1]}
    settings = read_object(path) if path.is_file() else stock
    return {**settings, **pixel_bounds(visual)}


def pixel_bounds(visual: VisualTokenizer) -> dict[str, Any]:
    """The bounds of a picture's area for every release: 4.51.3 reads the first two, later ones
    `size`, whose edges are areas all the same.
    """
    low, high = visual.min_pixels, visual.max_pixels
    return {
        "min_pixels": low,
        "max_pixels": high,
        "size": {"shortest_edge": low, "longest_edge": high},
    }
