"""Weights, settings and code of a folder that brings its visual tokenizer along.

transformers 4.51.3 copies the files that the loaded module itself imports relatively
(`dynamic_module_utils.get_cached_module_file`), so the two modules that it loads name all others.
"""

from __future__ import annotations

import ast
import pprint
import re
from pathlib import Path
from typing import Any

import torch

import dct_tokenizer
from dct_tokenizer import FrontEnd, VisualTokenizer, list_presets, preset_config
from dct_vl.export import bundle
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
#: name of `CellEmbedding` in the model
_PREFIX = "visual.patch_embed."
_CORE = Path(dct_tokenizer.__file__).parent
_OWN = Path(bundle.__file__).parent
#: modules that transformers loads by name
_ENTRIES = ("modeling_dct_vl", "processing_dct_vl")
_EMPTY_PRESETS = "PRESETS: dict[str, dict[str, Any]] = {}"


def cell_embedding(front_end: FrontEnd, dtype: torch.dtype) -> list[TensorGroup]:
    """Parameters in `dtype`, and the bits of the fixed float32 numbers."""
    groups = [
        _group(f"{_PREFIX}front_end.{name}", dtype, parameter)
        for name, parameter in front_end.named_parameters()
    ]
    state = front_end.state_dict()
    return groups + [
        _group(f"{_PREFIX}{name}_bits", torch.int32, float_bits(state[name]))
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


def write_code(folder: Path) -> list[str]:
    """Write all modules; returns the names of the files."""
    sources = {f"dct_{name}": path.read_text() for name, path in _core_modules().items()}
    for path in _OWN.glob("[!_]*.py"):
        sources[path.stem] = path.read_text()
    presets = {name: preset_config(name) for name in list_presets()}
    filled = _EMPTY_PRESETS.replace("{}", pprint.pformat(presets, width=98, sort_dicts=False))
    sources["dct_registry"] = sources["dct_registry"].replace(_EMPTY_PRESETS, filled)
    for name, source in sources.items():
        flat = _relative(source)
        if name in _ENTRIES:
            others = sorted(set(sources) - {*_ENTRIES, "configuration_dct_vl"})
            lines = [f"from .{other} import __name__ as _  # noqa: F401" for other in others]
            flat += "\n\n# named here so that transformers brings them along\n"
            flat += "\n".join(lines) + "\n"
        (folder / f"{name}.py").write_text(flat)
    return [f"{name}.py" for name in sorted(sources)]


def _core_modules() -> dict[str, Path]:
    """Name → file of all families and of what they and the bundle import, the registry left out."""
    found: dict[str, Path] = {}
    waiting = sorted((_CORE / "families").glob("[!_]*.py"))
    for path in sorted(_OWN.glob("[!_]*.py")):
        waiting += _imports_of(path)
    while waiting:
        path = waiting.pop()
        if path.stem in found:
            continue
        found[path.stem] = path
        waiting += _imports_of(path)
    return found


def _imports_of(path: Path) -> list[Path]:
    """Modules of `dct_tokenizer` that a file imports."""
    paths: list[Path] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            paths += _imported(node.module, [alias.name for alias in node.names])
    return paths


def _imported(module: str, names: list[str]) -> list[Path]:
    if module == "dct_tokenizer":
        paths = [_CORE / f"{name}.py" for name in names]
    elif module.startswith("dct_tokenizer."):
        paths = [_CORE / f"{module.removeprefix('dct_tokenizer.').replace('.', '/')}.py"]
    else:
        paths = []
    return [path for path in paths if path.stem != "registry"]


def _relative(source: str) -> str:
    """The module with imports of siblings."""
    rules = (
        (r"^from dct_tokenizer\.families\.(\w+) import", r"from .dct_\1 import"),
        (r"^from dct_tokenizer\.(\w+) import", r"from .dct_\1 import"),
        (r"^from dct_tokenizer import (\w+)$", r"from . import dct_\1 as \1"),
        (r"^from dct_vl\.export\.bundle\.(\w+) import", r"from .\1 import"),
    )
    for pattern, replacement in rules:
        source = re.sub(pattern, replacement, source, flags=re.MULTILINE)
    return source
