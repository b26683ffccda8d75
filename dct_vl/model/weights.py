"""Read a Hugging Face Qwen2-VL or Qwen2.5-VL folder straight into this rank's shards.

No converted copy on disk and no full model in memory: every Megatron tensor says through its
sharded state dict which slice of which global tensor this rank holds, in any tensor- or
pipeline-parallel layout and with either layer spec. The slice is cut from memory-mapped
safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import ExitStack
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
from dct_vl.model.families.qwen_vl.model import QwenVLWithVisualTokenizer
from dct_vl.model.families.qwen_vl.tensor_names import (
    FRONT_END_PREFIX,
    LM_HEAD,
    PATCH_EMBED,
    WORD_EMBEDDINGS,
    Heads,
    every_source,
    recipe,
)


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
        """Names of all tensors."""
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


def load_hf_weights(module: QwenVLWithVisualTokenizer, folder: str | Path) -> set[str]:
    """Fill `module` (a bare `QwenVLWithVisualTokenizer`) from a Hugging Face folder, in place.

    Returns:
        Names of the folder's tensors that this rank read.

    Raises:
        WeightsError: tensors are missing, have another shape or no place in the model, or the
            folder cannot be read. All problems are listed in one message.
    """
    geometry = attention_geometry(module)
    with HFFolder(folder) as source, torch.no_grad():
        problems = source.faults()
        if not problems:
            problems = _unread(module, source)
            for shard in module_shards(module):
                if not shard.key.startswith(FRONT_END_PREFIX):
                    _fill(shard, source, geometry, problems)
                    source.close_files()
            if module.vision_model is not None:
                _fill_front_end(module, source, problems)
        if problems:
            raise WeightsError(_report(folder, problems))
        return source.used


def _unread(module: QwenVLWithVisualTokenizer, source: HFFolder) -> list[str]:
    """Tensors of the folder that no rank of this model would read."""
    config = module.config
    known = every_source(
        config.language_transformer_config.num_layers,
        config.vision_transformer_config.num_layers,
        attention_geometry(module)[1],
    )
    problems = []
    if module.share_embeddings_and_output_weights and LM_HEAD in source:
        # some folders hold the tied matrix twice
        if not torch.equal(source.read(LM_HEAD), source.read(WORD_EMBEDDINGS)):
            problems.append(
                f"{LM_HEAD} differs from {WORD_EMBEDDINGS}, and config.json ties them: set "
                "tie_word_embeddings to false there, or remove the tensor"
            )
        source.close_files()
    unknown = source.names() - known
    if unknown:
        problems.append(f"no place in the model for {_listed(unknown)}")
    return problems


def _listed(names: Collection[str], most: int = 8) -> str:
    """A few names, and how many more there are."""
    shown = ", ".join(sorted(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _report(folder: str | Path, problems: list[str], most: int = 20) -> str:
    lines = problems[:most]
    if len(problems) > most:
        lines.append(f"and {len(problems) - most} more")
    return f"{folder} does not fit the model:\n  " + "\n  ".join(lines)


def attention_geometry(module: QwenVLWithVisualTokenizer) -> tuple[Heads, Heads]:
    """Heads of the language model and of the vision tower, as `hf_names.recipe` takes them."""
    language, vision = (
        Heads(
            num_heads=config.num_attention_heads,
            num_groups=config.num_query_groups,
            head_dim=config.kv_channels,
            gated=config.gated_linear_unit,
        )
        for config in (
            module.config.language_transformer_config,
            module.config.vision_transformer_config,
        )
    )
    return language, vision


def module_shards(module: QwenVLWithVisualTokenizer) -> list[ShardedTensor]:
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
    shard: ShardedTensor,
    source: HFFolder,
    geometry: tuple[Heads, ...],
    problems: list[str],
) -> None:
    name, slices = place_in_full(shard)
    try:
        how = recipe(name, *geometry)
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


def _fill_front_end(
    module: QwenVLWithVisualTokenizer, source: HFFolder, problems: list[str]
) -> None:
    if PATCH_EMBED not in source:
        problems.append(f"{PATCH_EMBED} is missing (needed for the tokenizer's front end)")
        return
    try:
        module.vision_model.front_end.load_pretrained(source.read(PATCH_EMBED))
    except ValueError as error:
        problems.append(f"{PATCH_EMBED}: {error}")
