"""A study: runs that differ in tokenizer and seed, as a table with intervals, plots and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import orjson

from dct_tokenizer.cost import plan_cost
from dct_vl.evaluation.compare.intervals import Interval, difference_interval, share_interval
from dct_vl.evaluation.compare.results import ResultFile, read_results
from dct_vl.evaluation.compare.runs import label
from dct_vl.evaluation.compare.study_plots import by_kind, draw_study
from dct_vl.runs.derived import RunSettings
from dct_vl.runs.result_files import SPEED_NAME, WORDS_NAME, read_object
from dct_vl.runs.run_files import read_config, read_steps, read_validation
from dct_vl.runs.series import steady_throughput


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """One run with its scores."""

    name: str
    tokenizer: str
    seed: int
    #: (step, share of words right) of every validation
    curve: tuple[tuple[int, float], ...]
    #: words of the scored samples
    words: ResultFile
    #: forward FLOPs of one image: front end, ViT and the language model over its tokens
    flops: float
    #: uint8 bytes from loader to model, one image
    wire_bytes: int
    #: samples/s of a forward and backward pass measured alone (`dct-vl speed`), if it was
    measured_speed: float | None
    #: samples/s in training: the median over the steady steps, loading included
    training_speed: float
    #: what must be equal for runs to be comparable: data, bounds, steps, batch, learning rate
    conditions: dict[str, object]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """All seeds of one tokenizer. K samples, R seeds."""

    tokenizer: str
    runs: tuple[StudyRun, ...]

    @cached_property
    def of(self) -> np.ndarray:
        """(K,) words of each sample."""
        return np.array([item.of for item in self.runs[0].words.items.values()])

    @cached_property
    def got(self) -> np.ndarray:
        """(R, K) words read right by each seed."""
        return np.array([[item.got for item in r.words.items.values()] for r in self.runs])

    @cached_property
    def by_source(self) -> dict[str, np.ndarray]:
        """Source → bool (K,), its samples."""
        sources = np.array([item.source for item in self.runs[0].words.items.values()])
        return {str(source): sources == source for source in np.unique(sources)}

    @property
    def visual_tokens(self) -> float:
        tokens = [item.num_visual_tokens or 0 for item in self.runs[0].words.items.values()]
        return float(np.mean(tokens))

    @property
    def shares(self) -> list[float]:
        """Share of all words, by seed."""
        return [float(share) for share in self.got.sum(axis=1) / self.of.sum()]

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.shares))

    @property
    def measured_speeds(self) -> list[float]:
        """Samples a second of the seeds whose speed was measured alone."""
        return [run.measured_speed for run in self.runs if run.measured_speed is not None]

    @property
    def samples_per_second(self) -> float:
        """Median over the seeds whose speed was measured alone, if any was, else over all."""
        return float(np.median(self.measured_speeds or [r.training_speed for r in self.runs]))

    def share(self, chosen: np.ndarray) -> float:
        """Share of right words of the chosen samples, bool (K,), mean over the seeds."""
        return float(self.got[:, chosen].sum(axis=1).mean() / self.of[chosen].sum())

    def against(self, base: Variant, chosen: np.ndarray) -> Interval | None:
        """Interval of the difference from `base` on the chosen samples, bool (K,)."""
        return difference_interval(self.got[:, chosen], base.got[:, chosen], self.of[chosen])


def collect_study(folder: Path, image_size: tuple[int, int]) -> list[StudyRun]:
    """All runs below LOG_DIR that hold a words.jsonl, by name.

    `image_size` is the (height, width) in pixels for which FLOPs are counted.

    Raises:
        ValueError: no scored run, or runs that differ in more than tokenizer and seed.
    """
    runs = [read_run(path.parent, image_size) for path in sorted(folder.glob(f"*/{WORDS_NAME}"))]
    if not runs:
        raise ValueError(
            f"no run below {folder} holds {WORDS_NAME}: score them first with "
            f"`dct-vl words RUN --output RUN/{WORDS_NAME}`"
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
        if list(run.words.items) != list(first.words.items):
            raise ValueError(f"{first.name} and {run.name} were scored on different samples")


def read_run(folder: Path, image_size: tuple[int, int]) -> StudyRun:
    """One scored run.

    Raises:
        ValueError: its words were scored at another step than its last.
    """
    config = read_config(folder)
    words = read_results(folder / WORDS_NAME)
    run_settings = RunSettings(config)
    tokenizer = run_settings.visual
    cost = plan_cost(tokenizer, tokenizer.plan(*image_size), run_settings.sizes.shape)
    steps = read_steps(folder)
    last = steps[-1]["step"]
    if words.step is not None and words.step != last:
        raise ValueError(
            f"{words.path} was scored at step {words.step}, and the run is at step {last}: score "
            f"it again with `dct-vl words {folder}`, or let the run save a checkpoint"
        )
    speed = folder / SPEED_NAME
    return StudyRun(
        name=folder.name,
        tokenizer=label(config.tokenizer),
        seed=config.seed,
        curve=tuple(
            (entry["step"], entry["word_accuracy"])
            for entry in read_validation(folder)
            if entry.get("word_accuracy") is not None
        ),
        words=words,
        flops=cost.total_flops,
        wire_bytes=cost.wire_bytes,
        measured_speed=read_object(speed)["samples_per_second"] if speed.is_file() else None,
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


def write_study(runs: Sequence[StudyRun], output: Path, *, baseline: str) -> Path:
    """Write study.md, study.png and study.json into `output`; return the table's path.

    Every tokenizer is compared with the baseline's, paired by sample.

    Raises:
        ValueError: no run of the baseline.
    """
    variants = group(runs)
    base = next((v for v in variants if v.tokenizer == baseline), None)
    if base is None:
        known = ", ".join(v.tokenizer for v in variants)
        raise ValueError(f"no run has the tokenizer {baseline!r}; scored are {known}")
    output.mkdir(parents=True, exist_ok=True)
    rows = [_row(variant, base) for variant in variants]
    (output / "study.json").write_bytes(orjson.dumps(rows, option=orjson.OPT_INDENT_2))
    draw_study(rows, output / "study.png")
    table = output / "study.md"
    table.write_text(markdown(rows, baseline), encoding="utf-8")
    return table


def group(runs: Sequence[StudyRun]) -> list[Variant]:
    """Runs by tokenizer, most FLOPs first, then by accuracy."""
    names = dict.fromkeys(run.tokenizer for run in runs)
    variants = [
        Variant(
            tokenizer=name,
            runs=tuple(sorted((r for r in runs if r.tokenizer == name), key=lambda r: r.seed)),
        )
        for name in names
    ]
    return sorted(variants, key=lambda v: (-v.runs[0].flops, -v.accuracy))


def _row(variant: Variant, base: Variant) -> dict[str, object]:
    run, sources = variant.runs[0], variant.by_source
    everything = np.ones(len(variant.of), dtype=bool)
    return {
        "tokenizer": variant.tokenizer,
        "seeds": [r.seed for r in variant.runs],
        "visual_tokens": variant.visual_tokens,
        "gflops": run.flops / 1e9,
        "wire_bytes": run.wire_bytes,
        "samples_per_second": variant.samples_per_second,
        # else it is of training beside other runs
        "is_speed_measured": bool(variant.measured_speeds),
        "accuracy": variant.accuracy,
        "accuracy_by_seed": variant.shares,
        "interval": share_interval(variant.got, variant.of),
        "difference": variant.accuracy - base.accuracy,
        "difference_interval": variant.against(base, everything),
        "by_source": {source: variant.share(chosen) for source, chosen in sources.items()},
        "difference_by_source": {
            source: variant.share(chosen) - base.share(chosen) for source, chosen in sources.items()
        },
        "difference_interval_by_source": {
            source: variant.against(base, chosen) for source, chosen in sources.items()
        },
        "curves": [{"seed": r.seed, "points": r.curve} for r in variant.runs],
    }


def markdown(rows: Sequence[dict], baseline: str) -> str:
    """Two tables: cost and words read, and words read by source."""
    head = ["tokenizer", "visual tokens", "GFLOP an image", "wire kB", "samples/s", "seeds"]
    head += ["words read, %", "95 %", f"against {baseline}"]
    costs = [
        [
            f"`{row['tokenizer']}`",
            f"{row['visual_tokens']:.1f}",
            f"{row['gflops']:.2f}",
            f"{row['wire_bytes'] / 1e3:.0f}",
            f"{row['samples_per_second']:,.0f}"
            + ("" if row["is_speed_measured"] else " (training)"),
            str(len(row["seeds"])),
            f"{100 * row['accuracy']:.2f}",
            _ends(row["interval"], "–", ""),
            "–"
            if row["tokenizer"] == baseline
            else f"{100 * row['difference']:+.2f} ({_ends(row['difference_interval'], '…', '+')})",
        ]
        for row in rows
    ]
    sources = sorted(rows[0]["by_source"], key=by_kind, reverse=True)
    kinds = [
        [f"`{row['tokenizer']}`", *(_by_source(row, source, baseline) for source in sources)]
        for row in rows
    ]
    return _table(head, costs) + "\n" + _table(["words read, %", *sources], kinds)


def _by_source(row: dict, source: str, baseline: str) -> str:
    share = f"{100 * row['by_source'][source]:.1f}"
    interval = row["difference_interval_by_source"][source]
    if row["tokenizer"] == baseline or interval is None:
        return share
    worse, better = (100 * end for end in interval)
    # what is not told from the baseline is left without figures
    return f"{share} ({worse:+.1f} … {better:+.1f})" if worse > 0 or better < 0 else share


def _ends(interval: Interval | None, between: str, sign: str) -> str:
    if interval is None:
        return "–"
    low, high = (format(100 * end, f"{sign}.2f") for end in interval)
    return f"{low} {between} {high}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
