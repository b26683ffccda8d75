"""`dct-vl fit`, `launch` and `doctor`, which take settings; `ledger` and `summary` of a run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import hydra
import typer
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig

from dct_vl.errors import ConfigError, RunError
from dct_vl.runs.config.compose import (
    CONFIG_DIR,
    check_overrides,
    compose_config,
    register_schema,
    to_run_config,
)
from dct_vl.training.processes.supervise import first_cause, note_error
from dct_vl.verbs import one_line_errors

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE …", help="Settings; dct_vl/runs/config/schema.py has them."),
]
RunFolder = Annotated[Path, typer.Argument(help="A run's folder, LOG_DIR/EXPERIMENT_NAME.")]
#: keys that the sweep of this process varies
_swept: list[str] = []


def fit(words: Settings = None) -> None:
    """Train, or resume. `-m tokenizer=pixel,dct14` trains one run after the other."""
    words = words or []
    overrides = check_overrides(words)
    if any(word in ("-m", "--multirun") for word in overrides):
        _swept[:] = swept_keys(overrides)
    elif not any(word.startswith("-") for word in overrides):
        # what is wrong is said as everywhere; Hydra's own entry has other words and exit status 1
        compose_config(words)
    sys.argv = [sys.argv[0], *overrides]
    register_schema()
    _hydra_entry()


@hydra.main(config_path=str(CONFIG_DIR), config_name="config", version_base="1.3")
def _hydra_entry(config: DictConfig) -> None:
    mode = HydraConfig.get()
    if mode.mode == RunMode.MULTIRUN:
        _run_alone(list(mode.overrides.task))
        return
    from dct_vl.training.fit import fit as train

    try:
        train(to_run_config(config))
    except (ConfigError, RunError) as error:
        note_error(str(error))
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except Exception as error:
        note_error(first_cause(error))
        raise


def _run_alone(overrides: list[str]) -> None:
    """A job of a sweep in a process of its own: Megatron's state is one per process."""
    overrides = [*overrides, f"experiment_name={job_name(overrides, _swept)}"]
    print(f"--- {' '.join(overrides)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "dct_vl", "fit", *overrides], check=False)
    if done.returncode:
        print(f"error: this job failed, the sweep stops: {' '.join(overrides)}", file=sys.stderr)
        sys.exit(done.returncode)


def swept_keys(overrides: Sequence[str]) -> list[str]:
    """Keys that a sweep varies; a comma in quotes or brackets is none of a sweep's.

    Raises:
        ConfigError: an override that Hydra cannot read.
    """
    settings = [override for override in overrides if not override.startswith("-")]
    try:
        parsed = OverridesParser.create().parse_overrides(settings)
    except OverrideParseException as error:
        raise ConfigError(f"{error.override}: the value cannot be read") from error
    return [override.key_or_group for override in parsed if override.is_sweep_override()]


def job_name(overrides: Sequence[str], swept: Sequence[str]) -> str:
    """experiment_name of one job of a sweep: what differs from the other jobs, so that each has a
    folder of its own.
    """
    values = dict(o.lstrip("+").partition("=")[::2] for o in overrides)
    parts = [values["experiment_name"]] if "experiment_name" in values else []
    for key in swept:
        value = values[key].replace("/", "_")
        plain = key in ("tokenizer", "experiment", "experiment_name")
        parts.append(value if plain else f"{key.rpartition('.')[2]}_{value}")
    return "-".join(dict.fromkeys(parts)) or "default"


def launch(words: Settings = None) -> None:
    """Check everything, then start all processes; --dry-run prints the command."""
    from dct_vl.training.processes.launch import launch as start

    start(words or [])


def doctor(words: Settings = None) -> None:
    """Check versions and devices and, with settings, data, model and disk."""
    from dct_vl.training.processes.doctor import examine
    from dct_vl.training.processes.tiny_model import with_model_folder

    if not examine(with_model_folder(compose_config(words)) if words else None):
        sys.exit(1)


def ledger(run_dir: RunFolder) -> None:
    """List which samples a run consumed, and how often."""
    from dct_vl.runs.ledger import summarize

    with one_line_errors():
        typer.echo(summarize(run_dir))


def summary(run_dir: RunFolder) -> None:
    """Write the run's page, summary.html, anew."""
    from dct_vl.training.report.run_summary import write_run_summary

    with one_line_errors():
        typer.echo(write_run_summary(run_dir))
