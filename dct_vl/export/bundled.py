"""The front end and the settings of a folder that brings its tokenizer's code along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dct_tokenizer import FrontEnd, VisualTokenizer
from dct_vl.export.bundle.configuration_dct_vl import DctVL25Config, DctVLConfig
from dct_vl.export.bundle.media_fields import float_bits
from dct_vl.export.bundle.modeling_dct_vl import fixed_numbers
from dct_vl.export.folder import model_settings, model_type, pixel_bounds
from dct_vl.export.tensors import TensorGroup, as_written
from dct_vl.model.families.qwen_vl.config import read_hf_config, vision_sizes

#: `model_type` of the base folder → configuration and name of the model
_CLASSES: dict[str, tuple[type[DctVLConfig] | type[DctVL25Config], str]] = {
    "qwen2_vl": (DctVLConfig, "DctVLForConditionalGeneration"),
    "qwen2_5_vl": (DctVL25Config, "DctVL25ForConditionalGeneration"),
}
#: where the model keeps `CellEmbedding`
_PLACE = "visual.patch_embed."


def cell_embedding(front_end: FrontEnd, dtype: torch.dtype) -> list[TensorGroup]:
    """Parameters in `dtype`, and the bits of the fixed float32 numbers."""
    groups = [
        _group(f"{_PLACE}front_end.{name}", dtype, parameter)
        for name, parameter in front_end.named_parameters()
    ]
    state = front_end.state_dict()
    return groups + [
        _group(f"{_PLACE}{name}_bits", torch.int32, float_bits(state[name]))
        for name in fixed_numbers(front_end)
    ]


def _group(name: str, dtype: torch.dtype, tensor: torch.Tensor) -> TensorGroup:
    def make() -> list[torch.Tensor]:
        return [as_written(tensor, dtype)]

    return TensorGroup(shapes={name: tuple(tensor.shape)}, dtype=dtype, make=make)


def bundled_model_settings(
    base: Path, dtype: torch.dtype, visual: VisualTokenizer
) -> dict[str, Any]:
    """config.json that leads to the bundled model and cannot be taken for a stock one's."""
    config, name = _CLASSES[model_type(base)]
    model = f"modeling_dct_vl.{name}"
    return {
        **model_settings(base, dtype),
        "model_type": config.model_type,
        "architectures": [name],
        "auto_map": {
            "AutoConfig": f"configuration_dct_vl.{config.__name__}",
            "AutoModelForImageTextToText": model,
            "AutoModelForVision2Seq": model,
            "AutoModelForCausalLM": model,
        },
        "visual_tokenizer": tokenizer_settings(visual),
    }


def bundled_processor_settings(base: Path, visual: VisualTokenizer) -> dict[str, Any]:
    """preprocessor_config.json that leads to the bundled processor."""
    return {
        "ids_per_second": vision_sizes(read_hf_config(base)).ids_per_second,
        "auto_map": {
            "AutoProcessor": "processing_dct_vl.DctVLProcessor",
            "AutoImageProcessor": "processing_dct_vl.DctVLImageProcessor",
        },
        "processor_class": "DctVLProcessor",
        "image_processor_type": "DctVLImageProcessor",
        "visual_tokenizer": tokenizer_settings(visual),
        **pixel_bounds(visual),
    }


def tokenizer_settings(visual: VisualTokenizer) -> dict[str, Any]:
    """The tokenizer's keys without files of this machine: statistics travel with the weights."""
    config = visual.config()
    if "statistics" in config:
        config["statistics"] = "natural"
    return config
