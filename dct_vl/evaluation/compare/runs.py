"""The runs that are compared, each with the scores of its answers and what it cost."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dct_tokenizer.registry import list_presets, preset_config
from dct_vl.errors import ConfigError
from dct_vl.evaluation.compare.results import ResultFile, find_results, read_results, set_of
from dct_vl.inputs.shard_index import data_identity
from dct_vl.pages.svg import NUM_SERIES
from dct_vl.runs.config.schema import RunConfig
from dct_vl.runs.derived import RunSettings
from dct_vl.runs.flops import StepWork
from dct_vl.runs.ledger import read_ledger
from dct_vl.runs.result_files import ANSWERS_NAME, read_object
from dct_vl.runs.run_files import (
    ENVIRONMENT_NAME,
    STEPS_NAME,
    latest_file,
    read_config,
    read_steps,
    read_validation,
)
from dct_vl.runs.series import Steps, column, steady_throughput


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One run."""

    #: as short as keeps it apart from the others
    name: str
    folder: Path
    config: RunConfig
    #: contents of environment.json; empty where it is missing
    environment: Mapping[str, Any]
    steps: Steps
    validation: Steps
    #: sample keys by step
    ledger: Mapping[int, Sequence[str]]
    #: hashes of shards and split, see `data_identity`; None where nobody wrote or finds them
    data: Mapping[str, str] | None
    cost: TrainingCost
    #: by the name of the set of questions
    results: Mapping[str, ResultFile]

    @property
    def tokenizer(self) -> str:
        """Name of the preset, with what the run changed."""
        return label(self.config.tokenizer)


def read_runs(
    folders: Sequence[Path],
    *,
    answers: Mapping[str, Path] | None = None,
    metric: str | None = None,
    ask: Callable[[Path, Path], None] | None = None,
) -> list[ComparedRun]:
    """Read runs and the scores of their answers.

    Args:
        folders: LOG_DIR/EXPERIMENT_NAME, at least two.
        answers: files of scores by the run's name; other runs' are looked for in their folder.
        metric: score of samples files that hold several.
        ask: ask(run's folder, file) answers questions where a run has no scores; None: an error.

    Raises:
        ValueError: fewer than two runs, a folder that is no run or has no step, a run without
            scores, a file that cannot be read, or a name that is no run's.
    """
    if not 2 <= len(folders) <= NUM_SERIES:
        raise ValueError(
            f"{len(folders)} runs; expected 2 to {NUM_SERIES}: name the folders LOG_DIR/EXPERIMENT "
            "of the runs to compare"
        )
    names = short_names(folders)
    given = dict(answers or {})
    for name in given.keys() - set(names):
        raise ValueError(f"--answers names {name!r}; the runs are {', '.join(names)}")
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder: expected a run's, LOG_DIR/EXPERIMENT_NAME")
    configs = [read_config(folder) for folder in folders]
    files = {}
    # all are found before any is answered, which may take long
    for name, folder in zip(names, folders, strict=True):
        files[name] = {set_of(given[name]): given[name]} if name in given else find_results(folder)
        if not files[name] and ask is None:
            raise ValueError(
                f"{folder} has no scores ({ANSWERS_NAME}, words.jsonl or *_samples_TASK.jsonl): "
                f"add --ask, or run `dct-vl answers {folder} --output "
                f"{folder / ANSWERS_NAME}`, or name a file with --answers {name}=FILE"
            )
    runs = []
    for name, folder, config in zip(names, folders, configs, strict=True):
        if not files[name]:
            assert ask is not None
            ask(folder, folder / ANSWERS_NAME)
            files[name] = find_results(folder)
        results = {key: read_results(path, metric) for key, path in files[name].items()}
        runs.append(_read(name, folder, config, results))
    return runs


def short_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as few as keep all apart.

    Raises:
        ValueError: a folder is named twice.
    """
    # a link keeps its own name, but is no other run
    real = [folder.resolve() for folder in folders]
    if len(set(real)) != len(real):
        twice = next(path for path in real if real.count(path) > 1)
        raise ValueError(f"{twice} is named twice: name two different runs")
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]


def _read(
    name: str, folder: Path, config: RunConfig, results: Mapping[str, ResultFile]
) -> ComparedRun:
    steps = read_steps(folder)
    if not steps:
        raise ValueError(f"{folder / STEPS_NAME} has no step: let the run do at least one")
    environment = _environment(latest_file(folder, ENVIRONMENT_NAME))
    return ComparedRun(
        name=name,
        folder=folder,
        config=config,
        environment=environment,
        steps=steps,
        validation=read_validation(folder),
        ledger=read_ledger(folder),
        # what the trainer saw; for runs that did not write it down, what is there now
        data=environment.get("data") or data_identity(config.data.path),
        cost=training_cost(config, steps),
        results=results,
    )


def _environment(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return read_object(file)
    except ValueError as error:
        raise ValueError(
            f"{error}: remove it, and the run is compared without what it says"
        ) from error


def label(preset: Mapping[str, object]) -> str:
    """Name of a preset, with the keys that a run changed: `dct28_420 whiten=False`."""
    name = str(preset["name"])
    if name not in list_presets():
        return name
    stock = preset_config(name)
    changed = {k: v for k, v in preset.items() if stock.get(k, v) != v}
    shown = (f"{k}={Path(v).name if isinstance(v, str) else v}" for k, v in changed.items())
    return " ".join((name, *shown))


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """Means and medians over the logged steps of a run; the fields are those of compare.json."""

    #: of a forward pass, images and text; None where the model is not at hand
    flops_per_sample: float | None
    #: median of the steady steps
    samples_per_second: float
    #: highest of any step, of the first rank's device, or of its process on a CPU
    peak_memory_gib: float | None

    @property
    def gflops(self) -> float | None:
        return None if self.flops_per_sample is None else self.flops_per_sample / 1e9


def training_cost(config: RunConfig, steps: Steps) -> TrainingCost:
    """Read the costs of a run with at least one step."""
    peaks = column(steps, "peak_memory_gib")
    return TrainingCost(
        flops_per_sample=_forward_flops(config, steps),
        samples_per_second=steady_throughput(steps),
        peak_memory_gib=float(np.nanmax(peaks)) if np.isfinite(peaks).any() else None,
    )


def _forward_flops(config: RunConfig, steps: Steps) -> float | None:
    try:
        counter = RunSettings(config).step_flops()
    except ConfigError:
        return None
    try:
        total = sum(counter.forward(StepWork.of_totals(step)) for step in steps)
    except KeyError:  # a log of an earlier version, which counted less
        return None
    return total / sum(step["num_samples"] for step in steps)
