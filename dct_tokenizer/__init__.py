"""Visual tokenizers for Qwen2-VL: geometry, DCT, presets and front ends."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dct_tokenizer.base import VisualTokenizer as VisualTokenizer
    from dct_tokenizer.errors import TokenizerConfigError as TokenizerConfigError
    from dct_tokenizer.front_end import FrontEnd as FrontEnd
    from dct_tokenizer.front_end import fold as fold
    from dct_tokenizer.plan import Plan as Plan
    from dct_tokenizer.plan import PlanError as PlanError
    from dct_tokenizer.registry import build_tokenizer as build_tokenizer
    from dct_tokenizer.registry import list_presets as list_presets
    from dct_tokenizer.registry import preset_config as preset_config
    from dct_tokenizer.registry import register_family as register_family

#: name → module that is imported on first use: `dct_tokenizer.geometry` alone needs no torch
_MODULES = {
    "FrontEnd": "front_end",
    "Plan": "plan",
    "PlanError": "plan",
    "TokenizerConfigError": "errors",
    "VisualTokenizer": "base",
    "build_tokenizer": "registry",
    "fold": "front_end",
    "list_presets": "registry",
    "preset_config": "registry",
    "register_family": "registry",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"dct_tokenizer.{_MODULES[name]}"), name)
