"""Build tokenizers from names: families are classes, presets are YAML files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dct_tokenizer.base import VisualTokenizer
from dct_tokenizer.errors import TokenizerConfigError, nearest_first

PRESET_DIR = Path(__file__).parent / "presets"
FAMILY_DIR = Path(__file__).parent / "families"

_FAMILIES: dict[str, type[VisualTokenizer]] = {}
_Family = TypeVar("_Family", bound=type[VisualTokenizer])


def register_family(name: str) -> Callable[[_Family], _Family]:
    """Class decorator that makes a family known under `name`. Raises on a name that is taken."""

    def register(cls: _Family) -> _Family:
        if name in _FAMILIES:
            taken = _FAMILIES[name]
            raise TokenizerConfigError(
                f"family {name!r} is taken by {taken.__module__}.{taken.__qualname__}: "
                "choose another name"
            )
        cls.family = name
        _FAMILIES[name] = cls
        return cls

    return register


def list_families() -> dict[str, type[VisualTokenizer]]:
    """Every known family; modules in `families/` are found by themselves."""
    for path in sorted(FAMILY_DIR.glob("[!_]*.py")):
        import_module(f"dct_tokenizer.families.{path.stem}")
    return dict(_FAMILIES)


def list_presets() -> list[str]:
    """Names of all presets, sorted. A YAML file dropped into `presets/` is one."""
    return sorted(path.stem for path in PRESET_DIR.glob("*.yaml"))


def preset_config(name: str) -> dict[str, Any]:
    """The flat mapping of a preset, or of a YAML file elsewhere where `name` ends in .yaml.

    Raises:
        TokenizerConfigError: an unknown name, or a file that is absent or holds no mapping.
    """
    if name.endswith(".yaml"):
        return _file_config(Path(name))
    if name not in list_presets():
        raise TokenizerConfigError(
            f"unknown tokenizer {name!r}; known: {nearest_first(name, list_presets())}"
        )
    return yaml.safe_load((PRESET_DIR / f"{name}.yaml").read_text())


def _file_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TokenizerConfigError(f"tokenizer file {path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise TokenizerConfigError(
            f"tokenizer file {path} holds a {type(config).__name__}; expected the keys of a preset"
        )
    return config


def preset_summary(name: str) -> str:
    """What a preset is in a sentence: the comment on the first line of its file."""
    first = (PRESET_DIR / f"{name}.yaml").read_text().partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""


def build_tokenizer(preset: str | Mapping[str, Any], **overrides: Any) -> VisualTokenizer:
    """A tokenizer from a preset's name, a YAML file or a mapping with a preset's keys.

    Args:
        preset: a name of `list_presets()`, the path of a YAML file (`.yaml`), or a mapping with
            `name`, `family` and its keys.
        overrides: further keys; they win.

    Raises:
        TokenizerConfigError: unknown preset, family or key, a missing key, or an impossible value.
    """
    config = {**(preset_config(preset) if isinstance(preset, str) else preset), **overrides}
    for key in ("name", "family"):
        if not isinstance(config.get(key), str):
            raise TokenizerConfigError(f"a tokenizer needs `{key}` as a string; got {config}")
    name, family = config["name"], config.pop("family")
    families = list_families()
    if family not in families:
        raise TokenizerConfigError(
            f"{name}: unknown family {family!r}; known: {nearest_first(family, families)}"
        )
    cls = families[family]
    known = {f.name: f for f in fields(cls)}
    for key, value in config.items():
        if key not in known:
            raise TokenizerConfigError(
                f"{name}: family {family!r} has no key {key!r}; valid: {nearest_first(key, known)}"
            )
        annotation = known[key].type
        expected = annotation if isinstance(annotation, str) else annotation.__name__
        _check_type(name, key, value, expected)
    try:
        return cls(**config)
    except TypeError as error:
        raise TokenizerConfigError(f"{name}: {error}") from error


_TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "bool": bool,
    "str": str,
}


def _check_type(name: str, key: str, value: object, annotation: str) -> None:
    is_bool = isinstance(value, bool)
    if not isinstance(value, _TYPES[annotation]) or is_bool != (annotation == "bool"):
        raise TokenizerConfigError(
            f"{name}: {key}={value!r} is {type(value).__name__}; expected {annotation}"
        )
