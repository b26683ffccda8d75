"""Compose a run's configuration outside of `hydra.main`."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from dct_vl.errors import ConfigError
from dct_vl.runs.config import groups
from dct_vl.runs.config.overrides import check_overrides
from dct_vl.runs.config.schema import RunConfig


def register_schema() -> None:
    """Tell Hydra the schema and the groups; idempotent."""
    groups.register()
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
    with initialize_config_dir(config_dir=str(groups.CONFIG_DIR), version_base="1.3"):
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
    config = OmegaConf.masked_copy(config, [k for k in config if k in known_top_level()])
    merged = OmegaConf.merge(OmegaConf.structured(RunConfig), config)
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ConfigError(f"{' and '.join(missing)} must be set: add {missing[0]}=…")
    run = OmegaConf.to_object(merged)
    assert isinstance(run, RunConfig)
    return run


def known_top_level() -> set[str]:
    """Names of the schema's sections and top-level keys."""
    return set(RunConfig.__dataclass_fields__)
