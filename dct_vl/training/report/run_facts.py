"""What a run's folder says about the run, gathered for its page."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson

from dct_vl.inputs.rejects import count_notes, count_rejects
from dct_vl.runs.checkpoint_files import checkpoint_step, list_checkpoints, read_meta
from dct_vl.runs.config.schema import RunConfig
from dct_vl.runs.derived import RunSettings
from dct_vl.runs.ledger import LedgerSummary, summarize
from dct_vl.runs.run_files import (
    CONFIG_NAME,
    ENVIRONMENT_NAME,
    STEPS_NAME,
    latest_file,
    read_config,
    read_json_lines,
    read_steps,
    read_validation,
)
from dct_vl.runs.series import Steps


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that is kept."""

    name: str
    step: int
    num_bytes: int
    world_size: int | None


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """One run."""

    config: RunConfig
    config_text: str
    #: contents of environment.json, of the latest start as `config` is
    environment: dict[str, Any]
    steps: Steps
    validation: Steps
    #: the step that was logged last; lower than the highest while a resumed run catches up
    current_step: int
    #: first step after each restart that did steps again
    restarts: tuple[int, ...]
    num_steps_repeated: int
    rejects: Counter[str]
    validation_rejects: Counter[str]
    #: training samples that were used in part
    notes: Counter[str]
    ledger: LedgerSummary | None
    data_parallel_size: int
    checkpoints: tuple[Checkpoint, ...]

    @property
    def state(self) -> str:
        done, planned = self.current_step, self.config.trainer.max_steps
        if done >= planned:
            return f"Finished: all {planned:,} steps are done."
        last = RunSettings(self.config).last_step
        if done >= last:
            return f"Stopped as asked after step {done:,}; the schedule runs to {planned:,}."
        return f"Not finished when this page was written: step {done:,} of {last:,}."

    @property
    def command(self) -> str:
        program, *arguments = self.environment["command"]
        path = Path(program)
        start = ["python", "-m", path.parent.name] if path.name == "__main__.py" else [program]
        return shlex.join([*start, *arguments])


def gather(run_dir: str | Path) -> RunFacts:
    """Read a run's folder.

    Raises:
        ValueError: the folder is not a run's.
    """
    folder = Path(run_dir)
    config = read_config(folder)
    entries = read_json_lines(folder / STEPS_NAME)
    steps = read_steps(folder)
    replicas = sorted((folder / "ledger").glob("dp*.jsonl"))
    return RunFacts(
        config=config,
        config_text=latest_file(folder, CONFIG_NAME).read_text(),
        environment=orjson.loads(latest_file(folder, ENVIRONMENT_NAME).read_bytes()),
        steps=steps,
        validation=read_validation(folder),
        current_step=entries[-1]["step"] if entries else 0,
        restarts=_restarts([entry["step"] for entry in entries]),
        num_steps_repeated=len(entries) - len(steps),
        rejects=count_rejects(folder / "rejects"),
        validation_rejects=count_rejects(folder / "rejects_val"),
        notes=count_notes(folder / "rejects"),
        ledger=summarize(folder) if replicas else None,
        data_parallel_size=len(replicas),
        checkpoints=tuple(_checkpoint(path) for path in list_checkpoints(folder)),
    )


def span(steps: Steps) -> str:
    """When the first and the last of these steps were done, in UTC."""
    first, last = (datetime.fromtimestamp(steps[i]["time"], tz=timezone.utc) for i in (0, -1))
    end = f"{last:%H:%M:%S}" if first.date() == last.date() else f"{last:%Y-%m-%d %H:%M:%S}"
    return f"{first:%Y-%m-%d %H:%M:%S} to {end} UTC"


def _restarts(order: list[int]) -> tuple[int, ...]:
    return tuple(step for previous, step in pairwise(order) if step <= previous)


def _checkpoint(path: Path) -> Checkpoint:
    try:
        meta = read_meta(path)
    except ValueError:
        meta = {}  # a damaged one is no reason to have no page
    return Checkpoint(
        name=path.name,
        step=checkpoint_step(path),
        num_bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        world_size=meta.get("world_size"),
    )
