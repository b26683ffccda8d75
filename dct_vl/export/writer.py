"""safetensors files of bounded size, named and indexed as by transformers' `save_pretrained`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from dct_vl.export.tensors import ExportError, TensorGroup

#: of one file; transformers' own default
MAX_SHARD_BYTES = 5 * 10**9
SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"


def write_tensors(
    folder: Path,
    groups: Iterable[TensorGroup],
    expected: dict[str, tuple[int, ...]],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> int:
    """Write all groups; one file's worth of tensors is in memory at a time.

    Args:
        folder: an existing folder.
        groups: what to write, each name once.
        expected: name → shape of all tensors that the folder must hold in the end.
        max_shard_bytes: of one file; a larger group gets a file of its own.

    Returns:
        Bytes of all tensors.

    Raises:
        ExportError: names are missing, unexpected or given twice. Nothing has been written then.
    """
    files = _spread(list(groups), max_shard_bytes)
    names = [name for file in files for group in file for name in group.shapes]
    wrong = sorted(set(expected).symmetric_difference(names))
    wrong += sorted({name for name in names if names.count(name) > 1})
    if wrong:
        raise ExportError(
            f"{len(wrong)} tensors are missing, unexpected or double: {', '.join(wrong[:20])}"
        )
    where: dict[str, str] = {}
    for number, file in enumerate(files, 1):
        name = SINGLE_NAME
        if len(files) > 1:
            name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors: dict[str, torch.Tensor] = {}
        for group in file:
            tensors.update(zip(group.shapes, group.make(), strict=True))
        save_file(tensors, folder / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(tensors, name))
    total = sum(group.num_bytes for file in files for group in file)
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")
    return total


def _spread(groups: Sequence[TensorGroup], max_bytes: int) -> list[list[TensorGroup]]:
    files: list[list[TensorGroup]] = []
    size = 0
    for group in groups:
        if not files or size + group.num_bytes > max_bytes:
            files.append([])
            size = 0
        files[-1].append(group)
        size += group.num_bytes
    return files
