"""The Hugging Face tensors of a Megatron module, made one Megatron tensor at a time.

Nothing is held twice: a group is cut from the module's own parameters when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from transformers import AutoConfig, AutoModelForImageTextToText

from dct_vl.model.families.qwen_vl.model import QwenVLWithVisualTokenizer
from dct_vl.model.families.qwen_vl.weights import (
    FRONT_END_PREFIX,
    LM_HEAD,
    WORD_EMBEDDINGS,
    attention_geometry,
    recipe,
)
from dct_vl.model.weights import Recipe, module_shards, place_in_full

#: the two tensors whose rows are the vocabulary, which Megatron may pad
_VOCABULARY = (WORD_EMBEDDINGS, LM_HEAD)


class ExportError(ValueError):
    """A model that cannot be written as asked; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class TensorGroup:
    """Tensors that are made together."""

    #: name → shape
    shapes: dict[str, tuple[int, ...]]
    dtype: torch.dtype
    #: the tensors in the order of `shapes`, contiguous, on the CPU
    make: Callable[[], Sequence[torch.Tensor]]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        numbers = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        return numbers * self.dtype.itemsize


def stock_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of what `save_pretrained` writes for the config.json in `folder`.

    A tied output matrix is not among them.
    """
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    tied = set(model._tied_weights_keys or ()) if config.tie_word_embeddings else set()
    return {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied
    }


def megatron_groups(
    module: QwenVLWithVisualTokenizer, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> Iterator[TensorGroup]:
    """Everything but the front end, in the order of the module.

    Args:
        module: a whole model: tensor- and pipeline-parallel sizes of 1.
        shapes: what the folder must hold, of `stock_shapes`.
        dtype: of the written tensors.

    Raises:
        ExportError: a tensor that the folder has no place for, or another shape than it must have.
    """
    geometry = attention_geometry(module)
    pieces: dict[str, list[ShardedTensor]] = {}
    for shard in module_shards(module):
        if not shard.key.startswith(FRONT_END_PREFIX):
            pieces.setdefault(place_in_full(shard)[0], []).append(shard)
    for name, shards in pieces.items():
        how = recipe(name, *geometry)
        absent = [source for source in how.sources if source not in shapes]
        if absent:
            raise ExportError(
                f"{name} of the checkpoint is {', '.join(absent)} in a Hugging Face folder, and "
                "the config.json of the run's model.path has no such tensor: was the run's model "
                "folder replaced since? (tie_word_embeddings decides about lm_head)"
            )
        wanted = {source: shapes[source] for source in how.sources}
        yield TensorGroup(shapes=wanted, dtype=dtype, make=_maker(name, shards, how, wanted, dtype))


def _maker(
    name: str,
    shards: list[ShardedTensor],
    how: Recipe,
    wanted: dict[str, tuple[int, ...]],
    dtype: torch.dtype,
) -> Callable[[], list[torch.Tensor]]:
    def make() -> list[torch.Tensor]:
        tensors = []
        for source, tensor in zip(how.sources, how.split(_assemble(shards)), strict=True):
            if source in _VOCABULARY:
                tensor = tensor[: wanted[source][0]]
            if tuple(tensor.shape) != wanted[source]:
                raise ExportError(
                    f"{name} gives {tuple(tensor.shape)} for {source}; the model's config.json "
                    f"asks for {wanted[source]}"
                )
            tensors.append(as_written(tensor, dtype))
        return tensors

    return make


def as_written(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor on the CPU in its own contiguous memory, as safetensors wants it."""
    return torch.empty(tensor.shape, dtype=dtype).copy_(tensor.detach())


def _assemble(shards: list[ShardedTensor]) -> torch.Tensor:
    """The full tensor of its pieces, which must cover it."""
    first = shards[0]
    shape = tuple(first.global_shape[first.prepend_axis_num :])
    if len(shards) == 1 and tuple(first.data.shape) == shape:
        return first.data
    full = torch.empty(shape, dtype=first.data.dtype, device=first.data.device)
    covered = 0
    for shard in shards:
        full[place_in_full(shard)[1]] = shard.data
        covered += shard.data.numel()
    if covered != full.numel():
        raise ExportError(
            f"{first.key}: this process holds {covered} of {full.numel()} numbers; export needs "
            "the whole model in one process (tensor and pipeline parallel sizes of 1)"
        )
    return full
