"""The questions that all runs answered, and their scores.

Shape legend: K samples. A sample may hold several questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dct_vl.evaluation.compare.intervals import difference_interval, share_interval
from dct_vl.evaluation.compare.results import ItemScore
from dct_vl.evaluation.compare.runs import ComparedRun


@dataclass(frozen=True, kw_only=True)
class PairedSet:
    """Questions that every run answered, in the order of the first run's file."""

    name: str
    metric: str
    higher_is_better: bool
    #: the samples are in the runs' shards, not in a benchmark
    is_from_shards: bool
    #: every score lies between 0 and 1, so that it reads as a percentage
    is_share: bool
    #: [question][run]
    items: tuple[tuple[ItemScore, ...], ...]
    #: questions without an image, which say nothing about a visual tokenizer
    num_without_image: int
    #: questions of each run that not every run answered
    num_unpaired: tuple[int, ...]

    @property
    def keys(self) -> list[str]:
        return list(dict.fromkeys(row[0].key for row in self.items))


@dataclass(frozen=True, kw_only=True)
class RunScore:
    """One run on a set, beside the baseline; the fields are those of compare.json."""

    score: float
    #: 95 %, or None where one sample leaves nothing to resample
    interval: tuple[float, float] | None
    #: this run less the baseline; 0 and None for the baseline itself
    difference: float
    difference_interval: tuple[float, float] | None
    #: questions that this run has better than the baseline, and worse
    num_better: int
    num_worse: int
    #: mean over the samples; None where the files do not say
    visual_tokens: float | None


@dataclass(frozen=True, kw_only=True)
class SourceScore:
    """The runs on the questions of one source."""

    source: str
    num_items: int
    shares: tuple[float, ...]


def pair(runs: Sequence[ComparedRun]) -> tuple[list[PairedSet], dict[str, list[str]]]:
    """Sets that all runs have, and the names of the runs that have each of the others.

    Raises:
        ValueError: no set in common, different scores, or no question in common.
    """
    names = dict.fromkeys(name for run in runs for name in run.results)
    holders = {name: [run.name for run in runs if name in run.results] for name in names}
    others = {name: held for name, held in holders.items() if len(held) < len(runs)}
    if len(others) == len(names):
        listed = "; ".join(f"{run.name}: {', '.join(run.results)}" for run in runs)
        raise ValueError(
            f"the runs have no set of questions in common ({listed}): answer the same questions "
            "with each, or name files with --answers NAME=FILE"
        )
    return [_pair(name, runs) for name in names if name not in others], others


def _pair(name: str, runs: Sequence[ComparedRun]) -> PairedSet:
    files = [run.results[name] for run in runs]
    first = files[0]
    for file in files[1:]:
        if file.metric != first.metric:
            raise ValueError(
                f"{first.path} holds {first.metric}, {file.path} {file.metric}: expected one score"
            )
    shared = [i for i in first.items if all(i in file.items for file in files)]
    if not shared:
        apart = [file for file in files if not first.items.keys() & file.items.keys()]
        other = [files[-1], *apart][-1]
        ours, theirs = (next(iter(file.items)) for file in (first, other))
        raise ValueError(
            f"{first.path} and {other.path} have no question in common: keys are like {ours[0]!r} "
            f"and {theirs[0]!r}. Answer the same split of the same data with both runs"
        )
    rows = [tuple(file.items[i] for file in files) for i in shared]
    about_images = [row for row in rows if any(item.num_visual_tokens != 0 for item in row)]
    if not about_images:
        raise ValueError(f"{first.path}: none of the questions is about an image: ask others")
    for row in about_images:
        if len({item.of for item in row}) > 1:
            raise ValueError(
                f"{row[0].key} has {row[0].of:g} words in {first.path} and another number in "
                "another run's file: models with different text tokenizers cannot be compared so"
            )
    return PairedSet(
        name=name,
        metric=first.metric,
        higher_is_better=first.higher_is_better,
        is_from_shards=first.is_from_shards,
        is_share=all(0 <= item.got <= item.of for row in about_images for item in row),
        items=tuple(about_images),
        num_without_image=len(rows) - len(about_images),
        num_unpaired=tuple(len(file.items) - len(shared) for file in files),
    )


def score_runs(paired: PairedSet, baseline: int) -> list[RunScore]:
    """Scores of all runs, in their order; `baseline` is the number of one of them."""
    of, got = sample_points(paired)
    base = paired_share(got[baseline], of)
    scores = []
    for number, points in enumerate(got):
        interval = difference_interval(points, got[baseline], of) if number != baseline else None
        better, worse = _wins(paired, number, baseline)
        scores.append(
            RunScore(
                score=paired_share(points, of),
                interval=share_interval(points, of),
                difference=paired_share(points, of) - base,
                difference_interval=interval,
                num_better=better,
                num_worse=worse,
                visual_tokens=_visual_tokens([row[number] for row in paired.items]),
            )
        )
    return scores


def score_sources(paired: PairedSet) -> list[SourceScore]:
    """Scores by source, in alphabetical order."""
    by_source: dict[str, list[tuple[ItemScore, ...]]] = {}
    for row in paired.items:
        by_source.setdefault(row[0].source, []).append(row)
    return [
        SourceScore(
            source=source,
            num_items=len(rows),
            shares=tuple(
                sum(item.got for item in column) / sum(item.of for item in column)
                for column in zip(*rows, strict=True)
            ),
        )
        for source, rows in sorted(by_source.items())
    ]


def sample_points(paired: PairedSet) -> tuple[np.ndarray, list[np.ndarray]]:
    """(K,) points to get of each sample, and for each run (K,) points that it got."""
    number_of = {key: number for number, key in enumerate(paired.keys)}
    where = np.array([number_of[row[0].key] for row in paired.items])
    of = np.bincount(where, [row[0].of for row in paired.items])
    got = [
        np.bincount(where, [item.got for item in column])
        for column in zip(*paired.items, strict=True)
    ]
    return of, got


def paired_share(got: np.ndarray, of: np.ndarray) -> float:
    """Σ got / Σ of."""
    return float(got.sum() / of.sum())


def _wins(paired: PairedSet, ours: int, theirs: int) -> tuple[int, int]:
    sign = 1 if paired.higher_is_better else -1
    gaps = [sign * (row[ours].got - row[theirs].got) for row in paired.items]
    return sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)


def _visual_tokens(items: Sequence[ItemScore]) -> float | None:
    """Mean over the samples; later questions of a sample may show more of its images."""
    tokens: dict[str, int] = {}
    for item in items:
        if item.num_visual_tokens is None:
            return None
        tokens[item.key] = max(item.num_visual_tokens, tokens.get(item.key, 0))
    return sum(tokens.values()) / len(tokens)
