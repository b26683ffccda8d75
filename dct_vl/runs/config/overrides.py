"""Check command-line overrides before Hydra does, so that a misspelt key names the nearest ones."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from dct_vl.errors import ConfigError
from dct_vl.runs.config.groups import CONFIG_DIR, GROUP_FOLDERS
from dct_vl.runs.config.schema import RunConfig


def known_keys(schema: type = RunConfig, prefix: str = "") -> dict[str, type]:
    """Dotted names of every key of the schema, sections included, and their types."""
    keys: dict[str, type] = {}
    hints = get_type_hints(schema)
    for item in fields(schema):
        keys[prefix + item.name] = hints[item.name]
        if is_dataclass(hints[item.name]):
            keys |= known_keys(hints[item.name], f"{prefix}{item.name}.")
    return keys


def group_choices(group: str) -> list[str]:
    """Choices of a configuration group: its YAML files, folders joined with a slash."""
    folder = GROUP_FOLDERS.get(group, CONFIG_DIR / group)
    names = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml"))
    return sorted(name.as_posix() for name in names if name.as_posix() != "config")


def check_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides in the form that Hydra takes.

    Keys below `tokenizer.` may be any of the family's (the tokenizer itself checks them), so they
    are passed with Hydra's `++`. Values of keys that are text, paths above all, may hold any
    character: what Hydra would not take as it stands gets quotes. In a sweep (-m) commas and
    parentheses have their meaning of Hydra, so that such values need quotes of their own there.

    Raises:
        ConfigError: an unknown key or choice, with the nearest valid ones, or a value of a sweep
            that needs quotes.
    """
    keys = known_keys()
    is_sweep = any(word in ("-m", "--multirun") for word in overrides)
    groups = ("experiment", "model", "tokenizer")
    passed = []
    for override in overrides:
        key, equals, value = override.lstrip("+~").partition("=")
        if override.startswith("-") or key.startswith("hydra."):
            passed.append(override)
            continue
        if not equals and not override.startswith("~"):
            raise ConfigError(f"{override!r} is not of the form key=value")
        if key in groups:
            _check_choices(key, value)
            passed.append(override)
        elif key.startswith("tokenizer."):
            passed.append("++" + override.lstrip("+"))
        elif key in keys:
            is_text = equals and keys[key] in (str, str | None)
            passed.append(_quoted(override, is_sweep) if is_text else override)
        else:
            raise ConfigError(f"unknown key {key!r}; {_nearest(key, keys)}")
    return passed


def _quoted(override: str, is_sweep: bool) -> str:
    """The override of a text, with quotes where Hydra would read something else or nothing."""
    key, _, value = override.partition("=")
    with_quotes = f"{key}={QuotedString(value, Quote.single).with_quotes()}"
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        if is_sweep:
            raise ConfigError(
                f"{override}: in a sweep this value needs quotes that reach the program: "
                f"{shlex.quote(with_quotes)}"
            ) from None
        return with_quotes
    if is_sweep or parsed.value() is None or isinstance(parsed.value(), (str, QuotedString)):
        return override
    return with_quotes


def _check_choices(group: str, value: str) -> None:
    choices = group_choices(group)
    for choice in value.split(","):
        if choice not in choices and not (group == "experiment" and choice == "null"):
            raise ConfigError(f"unknown {group} {choice!r}; {_nearest(choice, choices)}")


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    last = word.rpartition(".")[2]
    close += [k for k in known if k.rpartition(".")[2] == last and k not in close]
    if close:
        return f"did you mean {' or '.join(close[:4])}?"
    return f"known: {', '.join(known)}"
