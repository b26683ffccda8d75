"""What a model's config.json has to say: transformers puts its own numbers where one is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dct_vl.runs.config.overrides import ConfigError

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
        raise ConfigError(f"{path} is no JSON ({error}): fetch it again") from error
    if not isinstance(model, dict):
        raise ConfigError(f"{path} cannot be used: it is no JSON object")
    return model


def check_model_file(folder: str | Path) -> None:
    """Says nothing where there is no model yet.

    Raises:
        ConfigError: what is wrong with the folder's config.json, all of it.
    """
    model = read_model_file(folder)
    if model is not None and (faults := model_faults(model)):
        raise ConfigError(f"{Path(folder) / 'config.json'} cannot be used: {'; '.join(faults)}")
