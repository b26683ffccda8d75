"""Everything that the page shows in numbers, and compare.json made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dct_vl.evaluation.compare.conditions import Finding, check_conditions, differing_settings
from dct_vl.evaluation.compare.gallery import num_disagreements
from dct_vl.evaluation.compare.pairing import (
    PairedSet,
    RunScore,
    SourceScore,
    pair,
    score_runs,
    score_sources,
)
from dct_vl.evaluation.compare.runs import ComparedRun
from dct_vl.runs.series import column, first_and_last_loss, median, steady_steps


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """One run, apart from its scores."""

    run: ComparedRun
    #: number of its colour, from 1
    color: int
    is_baseline: bool
    train_loss_last: float
    val_loss: float | None
    seconds_per_step: float | None


@dataclass(frozen=True, kw_only=True)
class SetFigures:
    """One set of questions."""

    paired: PairedSet
    scores: tuple[RunScore, ...]
    sources: tuple[SourceScore, ...]
    num_disagreements: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All of it; lists of runs have the order of the command line."""

    runs: tuple[RunFacts, ...]
    baseline: int
    sets: tuple[SetFigures, ...]
    #: sets that only some runs have → names of these
    incomplete_sets: dict[str, list[str]]
    findings: tuple[Finding, ...]
    settings: dict[str, tuple[str, ...]]


def collect(runs: Sequence[ComparedRun], baseline: str | None) -> Comparison:
    """Pair, score and check.

    Args:
        runs: from `read_runs`.
        baseline: name of the run that the others are compared with; the first by default.

    Raises:
        ValueError: no such run, or scores that cannot be paired.
    """
    names = [run.name for run in runs]
    if baseline is not None and baseline not in names:
        raise ValueError(f"no run is named {baseline!r}; the runs are {', '.join(names)}")
    base = 0 if baseline is None else names.index(baseline)
    sets, incomplete = pair(runs)
    return Comparison(
        runs=tuple(
            RunFacts(
                run=run,
                color=number + 1,
                is_baseline=number == base,
                train_loss_last=first_and_last_loss(run.steps)[1],
                val_loss=run.validation[-1]["loss"] if run.validation else None,
                seconds_per_step=median(steady_steps(run.steps), "seconds"),
            )
            for number, run in enumerate(runs)
        ),
        baseline=base,
        sets=tuple(
            SetFigures(
                paired=one,
                scores=tuple(score_runs(one, base)),
                sources=tuple(score_sources(one)),
                num_disagreements=num_disagreements(one),
            )
            for one in sets
        ),
        incomplete_sets=incomplete,
        findings=tuple(check_conditions(runs, sets)),
        settings=differing_settings(runs),
    )


def as_json(found: Comparison) -> dict[str, Any]:
    """What compare.json holds."""
    names = [facts.run.name for facts in found.runs]
    return {
        "baseline": names[found.baseline],
        "runs": [
            {
                "name": facts.run.name,
                "folder": str(facts.run.folder),
                "tokenizer": facts.run.tokenizer,
                "num_steps": facts.run.steps[-1]["step"],
                "flops_per_sample": facts.run.cost.flops,
                "samples_per_second": facts.run.cost.samples_per_second,
                "peak_memory_gib": facts.run.cost.peak_memory_gib,
                "seconds_per_step": facts.seconds_per_step,
                "train_loss_last": facts.train_loss_last,
                "val_loss": facts.val_loss,
            }
            for facts in found.runs
        ],
        "sets": [
            {
                "name": one.paired.name,
                "metric": one.paired.metric,
                "higher_is_better": one.paired.higher_is_better,
                "num_questions": len(one.paired.items),
                "num_samples": len(one.paired.keys),
                "num_without_picture": one.paired.num_without_image,
                "num_disagreements": one.num_disagreements,
                "files": [str(facts.run.results[one.paired.name].path) for facts in found.runs],
                "scores": {
                    name: {
                        "score": score.share,
                        "interval": score.interval,
                        "difference": score.difference,
                        "difference_interval": score.difference_interval,
                        "num_better": score.num_better,
                        "num_worse": score.num_worse,
                        "visual_tokens": score.visual_tokens,
                    }
                    for name, score in zip(names, one.scores, strict=True)
                },
                "by_source": {
                    entry.source: {
                        "num_questions": entry.num_items,
                        "scores": dict(zip(names, entry.shares, strict=True)),
                    }
                    for entry in one.sources
                },
            }
            for one in found.sets
        ],
        "warnings": [f"{f.subject}: {f.text}" for f in found.findings if f.kind == "warning"],
        "settings": {name: dict(zip(names, v, strict=True)) for name, v in found.settings.items()},
    }


def losses(run: ComparedRun) -> dict[str, Any]:
    """Curves of a run: steps and losses of training and validation, float64 each."""
    return {
        "steps": column(run.steps, "step"),
        "loss": column(run.steps, "loss"),
        "val_steps": column(run.validation, "step"),
        "val_loss": column(run.validation, "loss"),
    }
