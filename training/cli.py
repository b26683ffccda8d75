"""The command line of `python -m training`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig

from training.config.compose import compose_config, register_schema, to_run_config
from training.config.groups import CONFIG_DIR
from training.config.overrides import ConfigError, check_overrides
from training.errors import RunError
from training.rank_errors import first_cause, note_error

_USAGE = """\
usage: python -m training [fit] KEY=VALUE …   train (see training/config/schema.py for the keys)
       python -m training -m tokenizer=pixel,dct14,dct28_420 …   one run after the other
       python -m training launch KEY=VALUE …  check everything, then start all processes
       python -m training doctor [KEY=VALUE …]  check versions, devices, data, model and disk
       python -m training estimate [KEY=VALUE …]  expected memory a GPU and time a step; see --help
       python -m training ledger RUN_DIR      which samples a run consumed, and how often
       python -m training summary RUN_DIR     write the run's page, summary.html, anew
       python -m training layout-check        the same losses in every parallel layout that fits
       python -m training random-model OUT    write a model folder with random weights
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; exits with 2 on a wrong setting."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_USAGE, end="")
        return
    if words[0] in _VERBS:
        verb = words.pop(0)
    elif "=" in words[0] or words[0].startswith("-"):
        verb = "fit"
    else:
        print(f"error: unknown verb {words[0]!r}\n{_USAGE}", file=sys.stderr, end="")
        sys.exit(2)
    try:
        _VERBS[verb](words)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _fit(words: list[str]) -> None:
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
    from training.fit import fit

    try:
        fit(to_run_config(config))
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
    done = subprocess.run([sys.executable, "-m", "training", "fit", *overrides], check=False)
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

    Args:
        overrides: the job's overrides.
        swept: keys that the sweep varies.
    """
    values = dict(o.lstrip("+").partition("=")[::2] for o in overrides)
    parts = [values["experiment_name"]] if "experiment_name" in values else []
    for key in swept:
        value = values[key].replace("/", "_")
        plain = key in ("tokenizer", "experiment", "experiment_name")
        parts.append(value if plain else f"{key.rpartition('.')[2]}_{value}")
    return "-".join(dict.fromkeys(parts)) or "default"


#: keys that the sweep of this process varies
_swept: list[str] = []


def _launch(words: list[str]) -> None:
    from training.launch import launch

    launch(words)


def _doctor(words: list[str]) -> None:
    from training.doctor import examine
    from training.tiny_model import with_model_folder

    if not examine(with_model_folder(compose_config(words)) if words else None):
        sys.exit(1)


def _ledger(words: list[str]) -> None:
    from training.ledger import summarize

    if len(words) != 1:
        raise ConfigError("usage: python -m training ledger RUN_DIR")
    try:
        print(summarize(words[0]))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _summary(words: list[str]) -> None:
    from training.report import write_run_summary

    if len(words) != 1:
        raise ConfigError("usage: python -m training summary RUN_DIR")
    try:
        print(write_run_summary(words[0]))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _random_model(words: list[str]) -> None:
    import typer

    from training.random_model.cli import random_model

    app = typer.Typer(add_completion=False)
    app.command()(random_model)
    app(args=words, prog_name="python -m training random-model")


def _estimate(words: list[str]) -> None:
    import typer

    from training.estimate.cli import estimate_command

    app = typer.Typer(add_completion=False)
    app.command()(estimate_command)
    app(args=words, prog_name="python -m training estimate")


def _layout_check(words: list[str]) -> None:
    import typer

    from training.layout_check.cli import layout_check

    app = typer.Typer(add_completion=False)
    app.command()(layout_check)
    app(args=words, prog_name="python -m training layout-check")


_VERBS: dict[str, Callable[[list[str]], None]] = {
    "fit": _fit,
    "launch": _launch,
    "doctor": _doctor,
    "estimate": _estimate,
    "ledger": _ledger,
    "layout-check": _layout_check,
    "summary": _summary,
    "random-model": _random_model,
}
