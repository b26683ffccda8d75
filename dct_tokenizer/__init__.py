"""Visual tokenizers for Qwen2-VL: geometry, DCT, presets and front ends."""

from dct_tokenizer.base import VisualTokenizer
from dct_tokenizer.errors import TokenizerConfigError
from dct_tokenizer.fold import fold
from dct_tokenizer.front_end import FrontEnd
from dct_tokenizer.plan import Plan, PlanError
from dct_tokenizer.registry import build_tokenizer, list_presets, preset_config, register_family

__all__ = [
    "FrontEnd",
    "Plan",
    "PlanError",
    "TokenizerConfigError",
    "VisualTokenizer",
    "build_tokenizer",
    "fold",
    "list_presets",
    "preset_config",
    "register_family",
]
