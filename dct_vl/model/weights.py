"""Read a Hugging Face folder straight into this rank's shards, by a model family's recipes.

No converted copy on disk and no full model in memory: every Megatron tensor says through its
sharded state dict which slice of which global tensor this rank holds, in any tensor- or
pipeline-parallel layout and with either layer spec. The slice is cut from memory-mapped
safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    LocalNonpersistentObject,
    ShardedObject,
    ShardedTensor,
    apply_factories,
)
from safetensors import safe_open

from dct_vl.errors import RunError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One Megatron tensor and the Hugging Face tensors that it holds.

    `split(join(*tensors))` gives the tensors back, bit by bit.
    """

    sources: tuple[str, ...]
    join: Callable[..., torch.Tensor]
    split: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


class WeightsError(RunError, ValueError):
    """A folder whose weights do not fit the model; lists what is wrong."""


class HFFolder:
    """The tensors of a folder's safetensors files, sharded or not, read lazily."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        self._where = self._index()
        self.used: set[str] = set()

    def __enter__(self) -> HFFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def close_files(self) -> None:
        """Unmap what has been read, so that it no longer counts as this process's memory."""
        self._stack.close()
        self._files.clear()

    def faults(self) -> list[str]:
        """What is wrong with the files: missing, cut short, or not what the index says."""
        found = []
        for name in sorted(set(self._where.values())):
            try:
                there = set(self._file(name).keys())
            except WeightsError as error:
                found.append(str(error))
                continue
            placed = {tensor for tensor, file in self._where.items() if file == name}
            if placed - there:
                found.append(
                    f"{name} lacks {_listed(placed - there)}, which the index places there"
                )
        self.close_files()
        return found

    def names(self) -> set[str]:
        return set(self._where)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, memory-mapped, in the folder's dtype."""
        self.used.add(name)
        return self._file(self._where[name]).get_tensor(name)

    def _file(self, name: str) -> Any:
        if name not in self._files:
            try:
                handle = safe_open(self.folder / name, framework="pt")
            except Exception as error:  # safetensors raises its own and OSError kinds
                raise WeightsError(
                    f"{self.folder / name} cannot be read ({error}): the file is missing or cut "
                    "short; fetch it again (git lfs pull)"
                ) from error
            self._files[name] = self._stack.enter_context(handle)
        return self._files[name]

    def _index(self) -> dict[str, str]:
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            try:
                return {
                    str(k): str(v) for k, v in json.loads(index.read_text())["weight_map"].items()
                }
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise WeightsError(
                    f"{index} is no index of weights ({type(error).__name__}: {error}): expected "
                    'JSON with a "weight_map" of tensor to file; fetch the file again'
                ) from error
        single = self.folder / "model.safetensors"
        if not single.is_file():
            raise WeightsError(
                f"{self.folder} holds neither model.safetensors nor its index: fetch the weights "
                "(git lfs pull)"
            )
        return dict.fromkeys(self._file(single.name).keys(), single.name)


def load_folder(
    module: Any,
    folder: str | Path,
    *,
    recipe: Callable[[str], Recipe],
    known: Collection[str],
    left_out: str,
    fill_rest: Callable[[HFFolder], list[str]],
) -> set[str]:
    """Fill a bare Megatron module from a Hugging Face folder, in place.

    Args:
        folder: with safetensors, sharded or not.
        recipe: of a full Megatron tensor; KeyError where no tensor of the folder corresponds.
        known: names of all tensors that a folder of this model may hold.
        left_out: prefix of Megatron tensors that `fill_rest` fills.
        fill_rest: fills what no recipe does, and gives what is wrong.

    Returns:
        Names of the folder's tensors that this rank read.

    Raises:
        WeightsError: tensors are missing, have another shape or no place in the model, or the
            folder cannot be read. All problems are listed in one message.
    """
    with HFFolder(folder) as source, torch.no_grad():
        problems = source.faults()
        if not problems:
            if unknown := source.names() - set(known):
                problems.append(f"no place in the model for {_listed(unknown)}")
            for shard in module_shards(module):
                if not shard.key.startswith(left_out):
                    _fill(shard, source, recipe, problems)
                    source.close_files()
            problems += fill_rest(source)
        if problems:
            raise WeightsError(_report(folder, problems))
        return source.used


def _listed(names: Collection[str], most: int = 8) -> str:
    shown = ", ".join(sorted(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _report(folder: str | Path, problems: list[str], most: int = 20) -> str:
    lines = problems[:most]
    if len(problems) > most:
        lines.append(f"and {len(problems) - most} more")
    return f"{folder} does not fit the model:\n  " + "\n  ".join(lines)


def module_shards(module: Any) -> list[ShardedTensor]:
    """This rank's pieces of every tensor; gated projections come in halves. Data is shared."""
    state = module.sharded_state_dict()
    apply_factories(state)
    found = []
    for value in nested_values(state):
        if isinstance(value, ShardedTensor):
            found.append(value)
        elif not isinstance(value, ShardedObject | LocalNonpersistentObject):
            raise TypeError(f"unexpected {type(value).__name__} in the sharded state dict")
    return found


def _fill(
    shard: ShardedTensor, source: HFFolder, recipe: Callable[[str], Recipe], problems: list[str]
) -> None:
    name, slices = place_in_full(shard)
    try:
        how = recipe(name)
    except KeyError as error:
        problems.append(str(error.args[0]))
        return
    absent = [s for s in how.sources if s not in source]
    if absent:
        problems.append(f"{', '.join(absent)} is missing (needed for {name})")
        return
    expected = tuple(shard.global_shape[shard.prepend_axis_num :])
    tensors = [source.read(s) for s in how.sources]
    try:
        full = how.join(*tensors)
    except (RuntimeError, ValueError):  # shapes that cannot be joined at all
        shapes = ", ".join(
            f"{s} {tuple(t.shape)}" for s, t in zip(how.sources, tensors, strict=True)
        )
        problems.append(f"{shapes} do not make up {name}; expected {expected}")
        return
    if tuple(full.shape) != expected:
        problems.append(
            f"{', '.join(how.sources)} gives {tuple(full.shape)} for {name}; expected {expected}"
        )
        return
    shard.data.copy_(full[slices])


def place_in_full(shard: ShardedTensor) -> tuple[str, tuple[slice, ...]]:
    """Name of the full tensor, with the layer's number in it, and this rank's slice of it."""
    name = shard.key
    leading = shard.global_offset[: shard.prepend_axis_num]
    if leading:
        # homogeneous layers share a key; their number is the leading offset
        name = name.replace("decoder.layers.", f"decoder.layers.{leading[0]}.", 1)
    offsets = shard.global_offset[shard.prepend_axis_num :]
    return name, tuple(
        slice(start, start + length)
        for start, length in zip(offsets, shard.data.shape, strict=True)
    )
