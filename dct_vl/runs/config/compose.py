"""Configurations from command-line overrides: Hydra's groups, checked keys, one `RunConfig`.

`experiment=dct_tokenizer/dct28_420` is experiments/dct_tokenizer/dct28_420.yaml and
`tokenizer=dct14` is dct_tokenizer/presets/dct14.yaml: dropping a file there adds a choice.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import get_type_hints

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from dct_vl.errors import ConfigError
from dct_vl.runs.config.schema import RunConfig
from dct_vl.shipped import ROOT, shipped_folder

CONFIG_DIR = shipped_folder("experiments")
#: group → folder of its YAML files
GROUP_FOLDERS = {
    "experiment": CONFIG_DIR,
    "tokenizer": ROOT / "dct_tokenizer" / "presets",
}


class GroupFolderSource(FileConfigSource):
    """One group that is kept in a folder of another name: group://NAME=/folder."""

    def __init__(self, provider: str, path: str) -> None:
        self.group, _, folder = path.removeprefix("group://").partition("=")
        super().__init__(provider=provider, path=f"{self.scheme()}://{folder}")

    @staticmethod
    def scheme() -> str:
        return "group"

    def load_config(self, config_path: str) -> ConfigResult:
        return super().load_config(self._inside(config_path) or "")

    def is_group(self, config_path: str) -> bool:
        inside = self._inside(config_path)
        return inside is not None and super().is_group(inside)

    def is_config(self, config_path: str) -> bool:
        inside = self._inside(config_path)
        return inside is not None and inside != "" and super().is_config(inside)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "":
            return [] if results_filter == ObjectType.CONFIG else [self.group]
        inside = self._inside(config_path)
        return [] if inside is None else super().list(inside, results_filter)

    def _inside(self, config_path: str) -> str | None:
        if config_path == self.group:
            return ""
        prefix = self.group + "/"
        return config_path.removeprefix(prefix) if config_path.startswith(prefix) else None


class GroupFolders(SearchPathPlugin):
    """Adds every folder of `GROUP_FOLDERS` to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for group, folder in GROUP_FOLDERS.items():
            search_path.append(provider="dct-vl", path=f"group://{group}={folder}")


def register_groups() -> None:
    """Make Hydra know the groups; idempotent."""
    sources = SourcesRegistry.instance()
    if GroupFolderSource.scheme() not in sources.types:
        sources.register(GroupFolderSource)
        Plugins.instance().register(GroupFolders)


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


def register_schema() -> None:
    """Tell Hydra the schema and the groups; idempotent."""
    register_groups()
    ConfigStore.instance().store(name="run_schema", node=RunConfig)


def compose_config(overrides: Sequence[str]) -> RunConfig:
    """The configuration that `dct-vl fit OVERRIDES` would use.

    Raises:
        ConfigError: an override names an unknown key or choice, has a value of the wrong type or
            one that cannot be read, a key without a default is not set, or a word is an option.
    """
    for word in overrides:
        if word.startswith("-"):
            raise ConfigError(f"{word!r} is not of the form key=value (sweeps: dct-vl fit -m …)")
    register_schema()
    passed = check_overrides(overrides)
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        try:
            config = compose("config", passed)
        except OverrideParseException as error:
            raise ConfigError(
                f"{error.override.lstrip('+')}: the value cannot be read: put text with other "
                "characters than letters, digits and /.-_ in quotes that reach the program, as in "
                "\"key='a,b'\""
            ) from error
        except HydraException as error:
            reason = str(error.__cause__ or "").partition("\n")[0]
            raise ConfigError(f"{error}: {reason}") from error
    return to_run_config(config)


def to_run_config(config: DictConfig) -> RunConfig:
    """Hydra's config as the schema's dataclasses, every value present and resolved.

    Raises:
        ConfigError: a key without a default is not set.
    """
    config = OmegaConf.masked_copy(
        config, [k for k in config if k in RunConfig.__dataclass_fields__]
    )
    merged = OmegaConf.merge(OmegaConf.structured(RunConfig), config)
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ConfigError(f"{' and '.join(missing)} must be set: add {missing[0]}=…")
    run = OmegaConf.to_object(merged)
    assert isinstance(run, RunConfig)
    return run
