"""Questions on which the runs disagree, with their pictures and what each tokenizer saw of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from dct_tokenizer.show import look
from dct_tokenizer.show.figure import psnr_text
from dct_vl.evaluation.compare.pairing import PairedSet
from dct_vl.evaluation.compare.pictures import Asked, from_shards, from_task
from dct_vl.evaluation.compare.results import ItemScore
from dct_vl.evaluation.compare.runs import ComparedRun
from dct_vl.inference.seen import reduced_uri
from dct_vl.inputs.images import decode_rgb
from dct_vl.runs.derived import RunSettings

#: pictures of one sample that are shown
MAX_PICTURES = 3


@dataclass(frozen=True, kw_only=True)
class View:
    """A picture on the page."""

    title: str
    note: str
    uri: str


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """One sample: its pictures, and the questions that were answered differently."""

    key: str
    source: str
    #: one row of views a picture; none where the pictures are not at hand
    pictures: tuple[tuple[View, ...], ...]
    num_pictures: int
    #: [question][run]
    items: tuple[tuple[ItemScore, ...], ...]


def num_disagreements(paired: PairedSet) -> int:
    """Questions that the runs did not do equally well."""
    return sum(_differs(row) for row in paired.items)


def disagreements(
    paired: PairedSet, runs: Sequence[ComparedRun], limit: int, data: Path | None = None
) -> list[Disagreement]:
    """At most `limit` samples on which the runs disagree, of every kind and source some.

    Args:
        paired: the questions.
        runs: whose tokenizers look at the pictures.
        limit: of samples.
        data: a benchmark's folder or file, for the pictures of its questions.

    Raises:
        ValueError: the data is not the benchmark's.
    """
    keys = choose(paired, limit)
    chosen = set(keys)
    samples: dict[str, Asked] = {}
    if data is not None:
        samples = from_task(paired.name, data, chosen)
    elif paired.is_from_shards:
        samples = from_shards(runs, chosen)
    rows: dict[str, list[tuple[ItemScore, ...]]] = {key: [] for key in keys}
    for row in paired.items:
        if row[0].key in chosen and _differs(row):
            rows[row[0].key].append(row)
    return [
        Disagreement(
            key=key,
            source=rows[key][0][0].source,
            pictures=_pictures(samples[key], runs) if key in samples else (),
            num_pictures=len(samples[key].images) if key in samples else 0,
            items=tuple(_filled(row, samples.get(key)) for row in rows[key]),
        )
        for key in keys
    ]


def choose(paired: PairedSet, limit: int) -> list[str]:
    """Keys of samples on which the runs disagree.

    Taken in turn from each kind of disagreement (which runs are the best) and source, so that a
    page shows what each run is better at; within a kind the widest gaps come first.
    """
    kinds: dict[tuple[object, ...], list[tuple[float, str]]] = defaultdict(list)
    for row in paired.items:
        if _differs(row):
            got = np.array([item.got for item in row]) * (1 if paired.higher_is_better else -1)
            winners = tuple((got == got.max()).tolist())
            gap = float(np.ptp(got)) / row[0].of
            kinds[winners, row[0].source].append((-gap, row[0].key))
    ordered = [
        [key for _, key in sorted(found, key=lambda entry: entry[0])] for found in kinds.values()
    ]
    turns = (key for turn in zip_longest(*ordered) for key in turn if key is not None)
    return list(dict.fromkeys(turns))[:limit]


def _differs(row: Sequence[ItemScore]) -> bool:
    return len({item.got for item in row}) > 1


def _pictures(sample: Asked, runs: Sequence[ComparedRun]) -> tuple[tuple[View, ...], ...]:
    # runs that share a tokenizer and its bounds saw the same
    seen_by: dict[str, list[ComparedRun]] = defaultdict(list)
    for run in runs:
        data = run.config.data
        seen_by[f"{run.tokenizer} {data.min_pixels} {data.max_pixels}"].append(run)
    rows = []
    for image in sample.images[:MAX_PICTURES]:
        # a damaged picture, or one too thin to cut, is missing on the page; the scores stand
        with suppress(ValueError):
            rows.append(_views(decode_rgb(image)[0], list(seen_by.values())))
    return tuple(rows)


def _views(picture: np.ndarray, seen_by: Sequence[Sequence[ComparedRun]]) -> tuple[View, ...]:
    """A picture, and what each group of runs sees of it."""
    height, width = picture.shape[:2]
    views = [View(title="original", note=f"{width} × {height}", uri=reduced_uri(picture))]
    for group in seen_by:
        view = look(RunSettings(group[0].config).visual, picture)
        views.append(
            View(
                title=", ".join(run.name for run in group),
                note=f"{view.plan.num_llm_tokens} tokens, {psnr_text(view.psnr)} PSNR",
                uri=reduced_uri(view.seen),
            )
        )
    return tuple(views)


def _filled(row: tuple[ItemScore, ...], asked: Asked | None) -> tuple[ItemScore, ...]:
    """With question and truth from the data where the file of scores has none."""
    if asked is None or row[0].truth is not None:
        return row
    return tuple(replace(item, question=asked.question, truth=asked.truth) for item in row)
