"""The Hugging Face tensors of a Megatron module, and the safetensors files that hold them.

No tensor is held twice: a group is cut from the module's own parameters when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from dct_tokenizer import FrontEnd, VisualTokenizer, build_tokenizer, fold
from dct_tokenizer.front_end import PATCH, PATCH_FRAMES
from dct_vl.model.families.qwen_vl.model import QwenVLWithVisualTokenizer
from dct_vl.model.families.qwen_vl.weights import (
    FRONT_END_PREFIX,
    LM_HEAD,
    PATCH_EMBED,
    WORD_EMBEDDINGS,
    attention_geometry,
    recipe,
)
from dct_vl.model.weights import Recipe, module_shards, place_in_full

#: the two tensors whose rows are the vocabulary, which Megatron may pad
_VOCABULARY = (WORD_EMBEDDINGS, LM_HEAD)
#: heights, widths and frames on which a tokenizer must plan as the stock processor does
_PROBES = ((90, 130, 1), (420, 588, 1), (61, 1203, 1), (2000, 1500, 1), (112, 168, 6))
#: of one file; transformers' own default
MAX_SHARD_BYTES = 5 * 10**9
SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"


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


def why_not_plain(visual: VisualTokenizer) -> str | None:
    """Why a tokenizer's model is not a plain Qwen2-VL or Qwen2.5-VL, or None where it is.

    It is where images become the very cells of the stock processor, and nothing but one
    convolution without bias lies between them and the vision tower's blocks.
    """
    if visual.content_dependent:
        return "its cells depend on the image's content"
    if visual.post_merge() is not None:
        return "it has a module between the vision tower and the language model"
    stock = build_tokenizer("pixel", min_pixels=visual.min_pixels, max_pixels=visual.max_pixels)
    if any(visual.plan(*probe) != stock.plan(*probe) for probe in _PROBES):
        return "it cuts images into other cells than the stock processor"
    weight, bias = visual.front_end(1).folded()
    if tuple(weight.shape[1:]) != (3, PATCH_FRAMES, PATCH, PATCH):
        return f"its convolution has a kernel of {tuple(weight.shape[2:])}"
    if bias is not None:
        return "its convolution has a bias"
    return None


def folded_patch_embed(front_end: FrontEnd, dtype: torch.dtype) -> TensorGroup:
    """The stock patch embedding that computes what a trained front end computes.

    The weight of `pixel` is that embedding, bit by bit; others are multiplied with their basis in
    float64 and rounded once to `dtype`.
    """
    conv = fold(front_end, inputs="normalised")
    if conv.bias is not None:
        raise ExportError("the front end has a bias, which a stock patch embedding has not")
    weight = conv.weight
    return TensorGroup(
        shapes={PATCH_EMBED: tuple(weight.shape)},
        dtype=dtype,
        make=lambda: [as_written(weight, dtype)],
    )


def write_tensors(
    folder: Path,
    groups: Iterable[TensorGroup],
    expected: dict[str, tuple[int, ...]],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> int:
    """Write all groups; one file's worth of tensors is in memory at a time.

    Args:
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
