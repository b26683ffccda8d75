"""Samples with their images, what each tokenizer leaves of them, and what the runs answered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np

from dct_tokenizer.decode import decode_rgb
from dct_tokenizer.show import look
from dct_tokenizer.show.figure import psnr_text
from dct_vl.evaluation.compare.pairing import PairedSet
from dct_vl.evaluation.compare.results import ItemScore
from dct_vl.evaluation.compare.runs import ComparedRun
from dct_vl.inputs.chat import IMAGE_MARK
from dct_vl.inputs.shard_index import keys_by_split
from dct_vl.inputs.shard_reader import read_split
from dct_vl.pages.page import image_uri
from dct_vl.runs.derived import RunSettings

#: images of one sample that are shown
_MAX_IMAGES = 3


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked about."""

    #: encoded
    images: tuple[bytes, ...]
    question: str
    truth: str


@dataclass(frozen=True, kw_only=True)
class ShownImage:
    """An image on the page: the original, or what a tokenizer leaves of it."""

    title: str
    note: str
    uri: str


@dataclass(frozen=True, kw_only=True)
class GalleryEntry:
    """One sample: its images, and questions about it with what every run answered."""

    key: str
    source: str
    #: a row for each image; none where the images are not at hand
    images: tuple[tuple[ShownImage, ...], ...]
    num_images: int
    #: [question][run]
    items: tuple[tuple[ItemScore, ...], ...]


def num_disagreements(paired: PairedSet) -> int:
    """Questions that the runs did not do equally well."""
    return sum(_differs(row) for row in paired.items)


def disagreements(
    paired: PairedSet, runs: Sequence[ComparedRun], limit: int, data: Path | None = None
) -> list[GalleryEntry]:
    """At most `limit` samples on which the runs disagree, of every kind and source some.

    `data` is a benchmark's folder or file, for the images of its questions.

    Raises:
        ValueError: the data is not the benchmark's.
    """
    keys = choose(paired, limit)
    samples: dict[str, Asked] = {}
    if data is not None:
        samples = from_task(paired.name, data, set(keys))
    elif paired.is_from_shards:
        samples = from_shards(runs, set(keys))
    return gallery([row for row in paired.items if _differs(row)], runs, keys, samples)


def gallery(
    rows: Sequence[tuple[ItemScore, ...]],
    runs: Sequence[ComparedRun],
    keys: Sequence[str],
    samples: Mapping[str, Asked],
) -> list[GalleryEntry]:
    """Entries in the order of `keys`, each of which has a row at least.

    Args:
        rows: [question][run], of which those about `keys` are shown.
        runs: whose tokenizers look at the images.
        samples: by key, as far as they are at hand.
    """
    by_key: dict[str, list[tuple[ItemScore, ...]]] = {key: [] for key in keys}
    for row in rows:
        if row[0].key in by_key:
            by_key[row[0].key].append(row)
    return [
        GalleryEntry(
            key=key,
            source=asked_about[0][0].source,
            images=_images(samples[key], runs) if key in samples else (),
            num_images=len(samples[key].images) if key in samples else 0,
            items=tuple(_filled(row, samples.get(key)) for row in asked_about),
        )
        for key, asked_about in by_key.items()
    ]


def first_of_each_source(paired: PairedSet, limit: int) -> list[str]:
    """Keys of at most `limit` samples, as many of each source as of the others, by source."""
    by_source: dict[str, dict[str, None]] = defaultdict(dict)
    for row in paired.items:
        by_source[row[0].source][row[0].key] = None
    per_source = -(-limit // len(by_source))
    return list(chain.from_iterable(list(keys)[:per_source] for keys in by_source.values()))[:limit]


def from_shards(runs: Sequence[ComparedRun], keys: set[str]) -> dict[str, Asked]:
    """Samples by key, from the shards of the first run that still has them."""
    found: dict[str, Asked] = {}
    for path in dict.fromkeys(run.config.data.path for run in runs):
        for split, members in (keys_by_split(path) or {}).items():
            missing = (keys & members) - found.keys()
            if missing:
                found |= _read(path, split, missing)
    return found


def from_task(name: str, path: Path, keys: set[str]) -> dict[str, Asked]:
    """Items of a benchmark by key; those whose images cannot be read are left out.

    Raises:
        ValueError: no such task, or the data is not there or not the task's.
    """
    from dct_vl.evaluation.tasks.files import ReadOptions
    from dct_vl.evaluation.tasks.registry import find_task

    task = find_task(name)
    if not path.exists():
        raise ValueError(f"{path} does not exist; {task.name} reads {task.layout}")
    found: dict[str, Asked] = {}
    for item in task.read(path, ReadOptions()):
        if item.key not in keys:
            continue
        try:
            images = item.image_bytes()
        except OSError:
            continue
        found[item.key] = Asked(
            images=images, question=item.question, truth=" | ".join(item.references)
        )
        if len(found) == len(keys):
            break
    return found


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
    ordered = (sorted(found, key=lambda entry: entry[0]) for found in kinds.values())
    turns = (entry[1] for turn in zip_longest(*ordered) for entry in turn if entry is not None)
    return list(dict.fromkeys(turns))[:limit]


def _differs(row: Sequence[ItemScore]) -> bool:
    return len({item.got for item in row}) > 1


def _images(sample: Asked, runs: Sequence[ComparedRun]) -> tuple[tuple[ShownImage, ...], ...]:
    # runs that share a tokenizer and its bounds saw the same
    seen_by: dict[str, list[ComparedRun]] = defaultdict(list)
    for run in runs:
        data = run.config.data
        seen_by[f"{run.tokenizer} {data.min_pixels} {data.max_pixels}"].append(run)
    rows = []
    for image in sample.images[:_MAX_IMAGES]:
        # a damaged image, or one too thin to cut, is missing on the page; the scores stand
        with suppress(ValueError):
            rows.append(_views(decode_rgb(image)[0], list(seen_by.values())))
    return tuple(rows)


def _views(image: np.ndarray, seen_by: Sequence[Sequence[ComparedRun]]) -> tuple[ShownImage, ...]:
    """An image, and what each group of runs sees of it, at its own size."""
    height, width = image.shape[:2]
    views = [ShownImage(title="original", note=f"{width} × {height}", uri=image_uri(image))]
    for group in seen_by:
        view = look(RunSettings(group[0].config).visual, image)
        height, width = view.decoded.shape[:2]
        loss = psnr_text(view.psnr).replace("dB", "dB PSNR")
        views.append(
            ShownImage(
                title=", ".join(run.name for run in group),
                note=f"{width} × {height}, {view.plan.num_llm_tokens} tokens, {loss}",
                uri=image_uri(view.decoded),
            )
        )
    return tuple(views)


def _filled(row: tuple[ItemScore, ...], asked: Asked | None) -> tuple[ItemScore, ...]:
    """With question and truth from the data where the file of scores has none."""
    if asked is None or row[0].truth is not None:
        return row
    return tuple(replace(item, question=asked.question, truth=asked.truth) for item in row)


def _read(path: str, split: str, wanted: set[str]) -> dict[str, Asked]:
    found, left = {}, set(wanted)
    # a sample that does not follow the schema has no image to show
    for sample in read_split(path, split, on_fault=lambda key, error: left.discard(key)):
        if sample.key in left:
            left.remove(sample.key)
            turns = sample.record.turns
            asked = [t.text.replace(IMAGE_MARK, "").strip() for t in turns if t.role == "user"]
            told = [turn.text for turn in turns if turn.role == "assistant"]
            found[sample.key] = Asked(
                images=sample.images, question=" / ".join(asked), truth=" / ".join(told)
            )
        if not left:
            break
    return found
