"""Import NeMo's Qwen2-VL without the rest of NeMo's model collections."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path

#: third-party packages that the full collections import; all of them must be there to do without
#: the narrow imports
FULL_COLLECTION_NEEDS = (
    "nemo_run",
    "datasets",
    "modelopt",
    "torchvision",
    "boto3",
    "qwen_vl_utils",
)

#: packages whose __init__ is skipped; their sub-modules import as usual
_NARROWED = (
    "nemo.collections.llm",
    "nemo.collections.llm.gpt",
    "nemo.collections.llm.gpt.model",
    "nemo.collections.vlm",
    "nemo.collections.vlm.neva",
    "nemo.collections.vlm.neva.model",
    "nemo.collections.vlm.neva.data",
    "nemo.collections.vlm.qwen2vl",
    "nemo.collections.vlm.qwen2vl.data",
    "nemo.collections.vlm.qwen2vl.model",
)


def is_needed() -> bool:
    """True where any package of `FULL_COLLECTION_NEEDS` is not installed."""
    return any(importlib.util.find_spec(name) is None for name in FULL_COLLECTION_NEEDS)


def register_packages() -> None:
    """Register the narrowed packages without running their __init__."""
    for name in _NARROWED:
        if name not in sys.modules:
            _register(name)


def _register(name: str) -> None:
    parent_name, _, child = name.rpartition(".")
    parent = importlib.import_module(parent_name)
    path = [str(Path(entry) / child) for entry in parent.__path__]
    package = types.ModuleType(name)
    package.__path__ = path
    package.__package__ = name
    package.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    package.__spec__.submodule_search_locations = path
    sys.modules[name] = package
    setattr(parent, child, package)
