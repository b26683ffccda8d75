"""Questions on which the runs disagree, with their pictures and what each tokenizer saw of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np

from dct_tokenizer.show import look
from dct_tokenizer.show.figure import psnr_text
from evaluation.compare.pairing import PairedSet
from evaluation.compare.results import ItemScore
from evaluation.compare.runs import ComparedRun
from evaluation.held_out import HeldOut, read_split
from evaluation.seen import reduced_uri, tokenizer_of
from training.data.images import decode_rgb
from training.data.shard_index import keys_by_split

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


def disagreements(paired: PairedSet, runs: Sequence[ComparedRun], limit: int) -> list[Disagreement]:
    """At most `limit` samples on which the runs disagree, of every kind and source some."""
    keys = choose(paired, limit)
    samples = find_samples(runs, set(keys))
    chosen = set(keys)
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


def find_samples(runs: Sequence[ComparedRun], keys: set[str]) -> dict[str, HeldOut]:
    """Samples by key, from the shards of the first run that still has them."""
    found: dict[str, HeldOut] = {}
    for path in dict.fromkeys(run.config.data.path for run in runs):
        for split, members in (keys_by_split(path) or {}).items():
            missing = (keys & members) - found.keys()
            if missing:
                found |= {sample.key: sample for sample in _read(path, split, missing)}
    return found


def _read(path: str, split: str, wanted: set[str]) -> Iterator[HeldOut]:
    left = set(wanted)
    # a sample that does not follow the schema has no picture to show
    for sample in read_split(path, split, on_fault=lambda key, error: left.discard(key)):
        if sample.key in left:
            left.remove(sample.key)
            yield sample
        if not left:
            return


def _differs(row: Sequence[ItemScore]) -> bool:
    return len({item.got for item in row}) > 1


def _pictures(sample: HeldOut, runs: Sequence[ComparedRun]) -> tuple[tuple[View, ...], ...]:
    # runs that share a tokenizer and its bounds saw the same
    seen_by: dict[str, list[ComparedRun]] = defaultdict(list)
    for run in runs:
        data = run.config.data
        seen_by[f"{run.tokenizer} {data.min_pixels} {data.max_pixels}"].append(run)
    rows = []
    for image in sample.images[:MAX_PICTURES]:
        picture = decode_rgb(image)[0]
        height, width = picture.shape[:2]
        views = [View(title="original", note=f"{width} × {height}", uri=reduced_uri(picture))]
        for group in seen_by.values():
            view = look(tokenizer_of(group[0].config), picture)
            views.append(
                View(
                    title=", ".join(run.name for run in group),
                    note=f"{view.plan.num_llm_tokens} tokens, {psnr_text(view.psnr)} PSNR",
                    uri=reduced_uri(view.seen),
                )
            )
        rows.append(tuple(views))
    return tuple(rows)


def _filled(row: tuple[ItemScore, ...], sample: HeldOut | None) -> tuple[ItemScore, ...]:
    """With question and truth from the sample where the file of scores has none."""
    if sample is None or row[0].truth is not None:
        return row
    asked = [t.text.replace("<image>", "").strip() for t in sample.record.turns if t.role == "user"]
    told = [turn.text for turn in sample.record.turns if turn.role == "assistant"]
    return tuple(replace(i, question=" / ".join(asked), truth=" / ".join(told)) for i in row)
