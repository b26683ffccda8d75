"""Names to tokenizers in a folder without presets' files: the same names as `registry`'s."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from dct_tokenizer.base import VisualTokenizer

#: what other tokenizers may refer to by name; filled in when a folder is written
PRESETS: dict[str, dict[str, Any]] = {}

_FAMILIES: dict[str, type[VisualTokenizer]] = {}
_Family = TypeVar("_Family", bound=type[VisualTokenizer])


def register_family(name: str) -> Callable[[_Family], _Family]:
    """Class decorator that makes a family known under `name`."""

    def register(cls: _Family) -> _Family:
        cls.family = name
        _FAMILIES[name] = cls
        return cls

    return register


def build_tokenizer(preset: str | Mapping[str, Any], **overrides: Any) -> VisualTokenizer:
    """A tokenizer from the name of a preset or a mapping with its keys; overrides win."""
    config = {**(PRESETS[preset] if isinstance(preset, str) else preset), **overrides}
    return _FAMILIES[config.pop("family")](**config)
