"""Export a run's checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from evaluation.export.model import ExportOptions, export_module
from evaluation.export.tensors import ExportError
from evaluation.loading import find_checkpoint, load_checkpoint

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def checkpoint_dtype(checkpoint: str | Path) -> torch.dtype:
    """Dtype of a checkpoint's weights (not of the optimizer's copies), from its metadata."""
    metadata = FileSystemReader(str(Path(checkpoint) / "weights")).read_metadata()
    for name, entry in metadata.state_dict_metadata.items():
        is_words = name.startswith("module.") and name.endswith("word_embeddings.weight")
        if is_words and isinstance(entry, TensorStorageMetadata):
            return entry.properties.dtype
    raise ExportError(f"{checkpoint} holds no word embeddings: not a checkpoint of a Qwen2-VL")


def export_checkpoint(path: str | Path, out: str | Path, dtype: torch.dtype | None = None) -> int:
    """Write a run's newest checkpoint, or the given one, as a Hugging Face folder.

    Args:
        path: a run's folder or one of its checkpoints, trained in any parallel layout.
        out: a new or empty folder.
        dtype: of the written weights; the checkpoint's own by default.

    Returns:
        Bytes of the weights.

    Raises:
        ValueError: no checkpoint there; or see `export_module`.
    """
    stored = checkpoint_dtype(find_checkpoint(path)[1])
    model = load_checkpoint(path, dtype=stored)
    options = ExportOptions(dtype=dtype or stored)
    return export_module(model.module, model.visual, model.run.model.path, out, options)
