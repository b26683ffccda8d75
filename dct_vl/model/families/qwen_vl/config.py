"""What a Hugging Face folder's config.json says, in one form for Qwen2-VL and Qwen2.5-VL."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from dct_vl.model.families.qwen_vl.model_file import model_faults
from dct_vl.runs.config.checks import MODEL_TYPES


@dataclass(frozen=True, kw_only=True)
class VisionSizes:
    """The vision tower: widths are numbers of channels."""

    layers: int
    width: int
    #: inner width of the MLP, of one half where it is gated
    mlp: int
    heads: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    #: of the language model
    out_width: int
    #: side of an attention window in ViT cells; None where every layer sees whole slices. With it
    #: come a gated MLP and RMS norms.
    window: int | None
    #: with windows: the layers, from 0, that see whole slices all the same
    full_layers: tuple[int, ...] = ()
    #: temporal M-RoPE ids of a second of video; None where a pair of frames is always one
    ids_per_second: float | None = None


def read_hf_config(folder: str | Path) -> Any:
    """The folder's transformers config.

    Raises:
        ValueError: the folder is not there, its config.json is damaged or lacks sizes, or it holds
            another kind of model, such as one that brings code of its own.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: expected a Hugging Face Qwen2-VL or Qwen2.5-VL folder; clone "
            "Qwen/Qwen2-VL-2B-Instruct there, or use model=tiny"
        )
    try:
        model = json.loads(path.read_bytes())
        found = model["model_type"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read ({error!r}): expected a JSON object with model_type; fetch the "
            "file again"
        ) from error
    # before transformers reads it, which asks a person whether to run the code of other models
    if found not in MODEL_TYPES:
        known = " or ".join(map(repr, MODEL_TYPES))
        raise ValueError(f"{path} describes {found!r}; expected {known}")
    if faults := model_faults(model):
        raise ValueError(f"{path} cannot be used: {'; '.join(faults)}")
    return AutoConfig.from_pretrained(folder)


def vision_sizes(hf: Any) -> VisionSizes:
    """The vision tower of a config of `read_hf_config`.

    Raises:
        ValueError: an activation or a window that this project has no model for.
    """
    vision = hf.vision_config
    common: dict[str, Any] = {
        "layers": vision.depth,
        "heads": vision.num_heads,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }
    if hf.model_type == "qwen2_vl":
        return VisionSizes(
            **common,
            width=vision.embed_dim,
            mlp=int(vision.embed_dim * vision.mlp_ratio),
            out_width=vision.hidden_size,
            window=None,
        )
    token = vision.patch_size * vision.spatial_merge_size
    if vision.hidden_act != "silu" or vision.window_size % token:
        raise ValueError(
            f"vision_config has hidden_act={vision.hidden_act!r} and "
            f"window_size={vision.window_size}; expected 'silu' and a multiple of {token}"
        )
    return VisionSizes(
        **common,
        width=vision.hidden_size,
        mlp=vision.intermediate_size,
        out_width=vision.out_hidden_size,
        window=vision.window_size // vision.patch_size,
        full_layers=tuple(vision.fullatt_block_indexes),
        ids_per_second=float(vision.tokens_per_second),
    )
