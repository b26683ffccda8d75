"""Which tokenizers are a plain model once their front end is folded, and that folding."""

from __future__ import annotations

import torch

from dct_tokenizer import FrontEnd, VisualTokenizer, build_tokenizer, fold
from dct_tokenizer.front_end import PATCH, PATCH_FRAMES
from dct_vl.export.tensors import ExportError, TensorGroup, as_written
from dct_vl.model.families.qwen_vl.weights import PATCH_EMBED

#: heights, widths and frames on which a tokenizer must plan as the stock processor does
_PROBES = ((90, 130, 1), (420, 588, 1), (61, 1203, 1), (2000, 1500, 1), (112, 168, 6))


def why_not_plain(visual: VisualTokenizer) -> str | None:
    """Why a tokenizer's model is not a plain Qwen2-VL or Qwen2.5-VL, or None where it is.

    It is where pictures become the very cells of the stock processor, and nothing but one
    convolution without bias lies between them and the vision tower's blocks.
    """
    if visual.content_dependent:
        return "its cells depend on the picture's content"
    if visual.post_merge() is not None:
        return "it has a module between the vision tower and the language model"
    stock = build_tokenizer("pixel", min_pixels=visual.min_pixels, max_pixels=visual.max_pixels)
    if any(visual.plan(*probe) != stock.plan(*probe) for probe in _PROBES):
        return "it cuts pictures into other cells than the stock processor"
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
