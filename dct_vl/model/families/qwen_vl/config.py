"""What a Hugging Face folder's config.json says, in one form for Qwen2-VL and Qwen2.5-VL.

transformers puts numbers of its own where the file lacks one, hence the checks before it is asked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dct_vl.errors import ConfigError

#: `model_type` of a model's config.json → what people call it; the models that training knows
MODEL_TYPES = {"qwen2_vl": "Qwen2-VL", "qwen2_5_vl": "Qwen2.5-VL"}

#: of the language model; whole numbers from 1
_NUMBERS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
#: of the vision tower, where they are given; tokens are cut for these
_VISION = {
    "patch_size": 14,
    "spatial_patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
}


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


def model_faults(model: dict[str, Any]) -> list[str]:
    """What is wrong with a Qwen2-VL or Qwen2.5-VL config.json; empty where nothing is seen.

    Args:
        model: the file's object.
    """
    if isinstance(model.get("text_config"), dict) and "hidden_size" not in model:
        return [
            "the language model's fields lie in text_config, as transformers later than 4.51 "
            "writes them; move them to the top, or take the folder's file of the hub"
        ]
    faults = [
        f"{name} is {model[name]!r}" if name in model else f"{name} is missing"
        for name in _NUMBERS
        if not _is_count(model.get(name))
    ]
    if not faults:
        faults = _head_faults(model)
    vision = model.get("vision_config")
    if not isinstance(vision, dict):
        return [*faults, "vision_config is missing"]
    return faults + [
        f"vision_config.{name} is {vision[name]!r}; expected {value}"
        for name, value in _VISION.items()
        if vision.get(name, value) != value
    ]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _head_faults(model: dict[str, Any]) -> list[str]:
    width, heads, groups = (model[name] for name in (_NUMBERS[0], *_NUMBERS[3:5]))
    if width % heads or width // heads % 2:
        return [f"hidden_size={width} cannot be divided into {heads} heads of an even size"]
    faults = []
    if heads % groups:
        faults.append(f"num_key_value_heads={groups} does not divide num_attention_heads={heads}")
    rope = model.get("rope_scaling")
    sections = rope.get("mrope_section") if isinstance(rope, dict) else None
    wanted = width // heads // 2
    if (
        not isinstance(sections, list)
        or len(sections) != 3
        or not all(map(_is_count, sections))
        or sum(sections) != wanted
    ):
        faults.append(
            f"rope_scaling.mrope_section is {sections!r}; expected three numbers that make up "
            f"{wanted}, half the size of a head"
        )
    return faults


def read_model_file(folder: str | Path) -> dict[str, Any] | None:
    """A folder's config.json; None where there is none yet.

    Raises:
        ConfigError: it is no JSON object.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        return None
    try:
        model = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(
            f"{path} cannot be read: it is no JSON ({error}): fetch it again"
        ) from error
    if not isinstance(model, dict):
        raise ConfigError(f"{path} cannot be read: it is no JSON object; fetch it again")
    return model


def is_known_folder(folder: str | Path) -> bool:
    """Whether a Hugging Face folder holds a model of this family that is covered whole: without
    code of its own, quantisation, sliding windows and stretched positions, in safetensors.
    """
    model = read_model_file(folder) or {}
    scaling = model.get("rope_scaling") or {}
    kinds = {scaling.get("type", "mrope"), scaling.get("rope_type", "default")}
    return (
        model.get("model_type") in MODEL_TYPES
        and not model.keys() & {"auto_map", "quantization_config"}
        and not model.get("use_sliding_window")
        and kinds <= {"mrope", "default"}
        and model.get("torch_dtype", "float32") in ("bfloat16", "float32")
        and any(Path(folder).glob("*.safetensors"))
    )


def check_model_file(folder: str | Path) -> None:
    """Says nothing where there is no model yet.

    Raises:
        ConfigError: what is wrong with the folder's config.json, all of it.
    """
    model = read_model_file(folder)
    if model is not None and (faults := model_faults(model)):
        raise ConfigError(f"{Path(folder) / 'config.json'} cannot be used: {'; '.join(faults)}")


def read_hf_config(folder: str | Path) -> Any:
    """The folder's transformers config.

    Raises:
        ConfigError: the folder is not there, its config.json is damaged or lacks sizes, or it holds
            another kind of model, such as one that brings code of its own.
    """
    path, model = Path(folder) / "config.json", read_model_file(folder)
    if model is None:
        raise ConfigError(
            f"{path} is missing: expected a Hugging Face Qwen2-VL or Qwen2.5-VL folder; clone "
            "Qwen/Qwen2-VL-2B-Instruct there, or use model=tiny"
        )
    # before transformers reads it, which asks a person whether to run the code of other models
    if (found := model.get("model_type")) not in MODEL_TYPES:
        known = " or ".join(map(repr, MODEL_TYPES))
        raise ConfigError(f"{path} describes {found!r}; expected {known}")
    check_model_file(folder)
    from transformers import AutoConfig

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
