"""Read the runs of a study.

Shape legend: K samples of the split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from dct_tokenizer.cost import plan_cost
from dct_tokenizer.registry import list_presets, preset_config
from dct_vl.runs.derived import RunSettings
from dct_vl.runs.result_names import SPEED_NAME, WORDS_NAME
from dct_vl.runs.run_files import read_config, read_steps
from dct_vl.training.report import read_validation, steady_throughput


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """One run with its scores."""

    name: str
    tokenizer: str
    seed: int
    num_steps: int
    #: (step, share of words right) of every validation
    curve: tuple[tuple[int, float], ...]
    #: keys of the scored samples, in order
    keys: tuple[str, ...]
    #: (K,) source of each sample
    sources: np.ndarray
    #: (K,) int
    num_words: np.ndarray
    #: (K,) int
    num_right: np.ndarray
    #: mean over the samples
    visual_tokens: float
    #: forward FLOPs of one picture: front end, ViT and the language model over its tokens
    flops: float
    #: uint8 bytes from loader to model, one picture
    wire_bytes: int
    #: samples/s of a forward and backward pass measured alone (`evaluation speed`), if it was
    measured_speed: float | None
    #: samples/s in training: the median over the steady steps, loading included
    training_speed: float
    #: what must be equal for runs to be comparable: data, bounds, steps, batch, learning rate
    conditions: dict[str, object]

    @property
    def accuracy(self) -> float:
        """Share of all words."""
        return float(self.num_right.sum() / self.num_words.sum())


def collect_study(folder: Path, picture: tuple[int, int]) -> list[StudyRun]:
    """All runs below `folder` that have been scored, by name.

    Args:
        folder: LOG_DIR of the runs; each scored run holds a `words.jsonl`.
        picture: (height, width) in pixels for which FLOPs are counted.

    Raises:
        ValueError: no scored run, or runs that differ in more than tokenizer and seed.
    """
    runs = [read_run(path.parent, picture) for path in sorted(folder.glob(f"*/{WORDS_NAME}"))]
    if not runs:
        raise ValueError(
            f"no run below {folder} holds {WORDS_NAME}: score them first with `python -m "
            f"evaluation words RUN --output RUN/{WORDS_NAME}`"
        )
    check_comparable(runs)
    return runs


def check_comparable(runs: Sequence[StudyRun]) -> None:
    """Raises ValueError where runs differ in more than tokenizer and seed."""
    first = runs[0]
    for run in runs[1:]:
        for name, value in run.conditions.items():
            if first.conditions[name] != value:
                raise ValueError(
                    f"{first.name} has {name} = {first.conditions[name]}, {run.name} has {value}: "
                    "runs of a study may differ in tokenizer and seed only"
                )
        if run.keys != first.keys:
            raise ValueError(f"{first.name} and {run.name} were scored on different samples")


def read_run(folder: Path, picture: tuple[int, int]) -> StudyRun:
    """One scored run.

    Raises:
        ValueError: its words were scored at another step than its last.
    """
    config = read_config(folder)
    words = folder / WORDS_NAME
    lines = [orjson.loads(line) for line in words.read_bytes().splitlines()]
    settings = RunSettings(config)
    tokenizer = settings.visual
    cost = plan_cost(tokenizer, tokenizer.plan(*picture), settings.sizes.shape)
    steps = read_steps(folder)
    scored, last = lines[0].get("step"), steps[-1]["step"]
    if scored is not None and scored != last:
        raise ValueError(
            f"{words} was scored at step {scored}, and the run is at step {last}: score it again "
            f"with `dct-vl words {folder}`, or let the run save a checkpoint"
        )
    return StudyRun(
        name=folder.name,
        tokenizer=label(config.tokenizer),
        seed=config.seed,
        num_steps=last,
        curve=tuple(
            (entry["step"], entry["word_accuracy"])
            for entry in read_validation(folder)
            if entry.get("word_accuracy") is not None
        ),
        keys=tuple(line["key"] for line in lines),
        sources=np.array([line["source"] for line in lines]),
        num_words=np.array([line["num_words"] for line in lines]),
        num_right=np.array([line["num_right"] for line in lines]),
        visual_tokens=float(np.mean([line["num_visual_tokens"] for line in lines])),
        flops=cost.total_flops,
        wire_bytes=cost.wire_bytes,
        measured_speed=_measured_speed(folder),
        training_speed=steady_throughput(steps),
        conditions={
            "data.path": config.data.path,
            "data.min_pixels": config.data.min_pixels,
            "data.max_pixels": config.data.max_pixels,
            "model.path": config.model.path,
            "steps": last,
            "trainer.global_batch_size": config.trainer.global_batch_size,
            "optim.lr": config.optim.lr,
        },
    )


def _measured_speed(folder: Path) -> float | None:
    measured = folder / SPEED_NAME
    if not measured.is_file():
        return None
    return float(orjson.loads(measured.read_bytes())["samples_per_second"])


def label(preset: Mapping[str, object]) -> str:
    """Name of a preset, with the keys that a run changed: `dct28_420 whiten=False`."""
    name = str(preset["name"])
    if name not in list_presets():
        return name
    stock = preset_config(name)
    changed = {k: v for k, v in preset.items() if stock.get(k, v) != v}
    shown = (f"{k}={Path(v).name if isinstance(v, str) else v}" for k, v in changed.items())
    return " ".join((name, *shown))
