"""Compose a run's configuration outside of `hydra.main`."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from training.config import groups
from training.config.overrides import check_overrides
from training.config.schema import RunConfig


def register_schema() -> None:
    """Tell Hydra the schema and the groups; idempotent."""
    groups.register()
    ConfigStore.instance().store(name="run_schema", node=RunConfig)


def compose_config(overrides: Sequence[str]) -> RunConfig:
    """The configuration that `python -m training fit OVERRIDES` would use.

    Raises:
        ConfigError: an override names an unknown key or choice.
    """
    register_schema()
    with initialize_config_dir(config_dir=str(groups.CONFIG_DIR), version_base="1.3"):
        return to_run_config(compose("config", check_overrides(overrides)))


def to_run_config(config: DictConfig) -> RunConfig:
    """Hydra's config as the schema's dataclasses, every value present and resolved."""
    config = OmegaConf.masked_copy(config, [k for k in config if k in known_top_level()])
    run = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), config))
    assert isinstance(run, RunConfig)
    return run


def known_top_level() -> set[str]:
    """Names of the schema's sections and top-level keys."""
    return set(RunConfig.__dataclass_fields__)
