"""Exact statistics of a folder of shards, and what its images cost in visual tokens."""

import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from data_prep.options import FACTOR, OptionError
from data_prep.schema import SchemaError
from data_prep.shards import ShardSample, iter_samples, open_shard, read_sample, shard_paths
from dct_tokenizer.geometry import smart_resize
from dct_tokenizer.plan import PlanError

if TYPE_CHECKING:
    from dct_tokenizer import VisualTokenizer


#: faults that are written out
MAX_SHOWN = 10


@dataclass
class Tally:
    """Counts of samples; those of several shards add up."""

    samples: Counter[str] = field(default_factory=Counter)  #: by source
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  #: images by (height, width)
    image_kib: Counter[int] = field(default_factory=Counter)  #: images by size in KiB
    video_kib: Counter[int] = field(default_factory=Counter)  #: videos by size in KiB
    images: Counter[int] = field(default_factory=Counter)  #: samples by number of images
    videos: Counter[int] = field(default_factory=Counter)  #: samples by number of videos
    turns: Counter[int] = field(default_factory=Counter)  #: samples by questions with an answer
    question_chars: Counter[int] = field(default_factory=Counter)  #: questions by length
    answer_chars: Counter[int] = field(default_factory=Counter)  #: answers by length
    unusable: Counter[str] = field(default_factory=Counter)  #: samples by what is wrong with them
    damage: Counter[str] = field(default_factory=Counter)  #: damaged places

    def add(self, other: "Tally") -> None:
        for counter in fields(self):
            getattr(self, counter.name).update(getattr(other, counter.name))

    def note_damage(self, shard: str, damage: object) -> None:
        """A place of a shard that cannot be read."""
        _note(self.damage, f"{shard}, {damage}")

    def note_unusable(self, shard: str, key: str, error: SchemaError) -> None:
        """A sample that training would reject."""
        _note(self.unusable, f"{shard}, {key}: {error}")

    def faults(self) -> list[str]:
        """What is left out of the counts, a line each; [] where nothing is."""
        lines = []
        for what, found in (("damaged places", self.damage), ("unusable samples", self.unusable)):
            if found:
                shown = [text for text in found if text != _OTHERS][:MAX_SHOWN]
                others = found.total() - sum(found[text] for text in shown)
                shown += [f"and {others:,} more"] if others else []
                lines.append(f"{found.total():,} {what}: {'; '.join(shown)}")
        return lines


_OTHERS = ""


def _note(found: Counter[str], text: str) -> None:
    """Count a fault; only the first are kept in words, since all samples may have it."""
    found[text if len(found) < MAX_SHOWN else _OTHERS] += 1


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """The visual tokens of images under one tokenizer."""

    tokenizer: str
    from_sizes: bool  #: False where the number is known after decoding only; nothing is counted
    images: Counter[int] = field(default_factory=Counter)  #: images by number of visual tokens
    refused: int = 0  #: images whose size the tokenizer cannot cut within these pixel bounds


def tally_shard(path: Path, name: str | None = None) -> Tally:
    """Count one shard, which faults call by its name; a sample that training would reject for its
    parts or its JSON is counted as unusable.
    """
    tally = Tally()
    name = name or path.name
    with open_shard(path) as shard:
        try:
            for sample in iter_samples(shard, partial(tally.note_damage, name)):
                try:
                    _count_sample(tally, sample, shard)
                except SchemaError as error:
                    tally.note_unusable(name, sample.key, error)
        except (OSError, tarfile.ReadError) as error:
            tally.note_damage(name, f"it cannot be read: {error}")
    return tally


def _count_sample(tally: Tally, sample: ShardSample, shard: BinaryIO) -> None:
    record, parts = read_sample(sample, shard)
    tally.samples[record.source or "unknown"] += 1
    tally.sizes.update(record.sizes)
    tally.image_kib.update(round(sample.parts[part].size / 1024) for part in parts.images)
    tally.video_kib.update(round(sample.parts[part].size / 1024) for part in parts.videos)
    tally.images[len(parts.images)] += 1
    tally.videos[len(parts.videos)] += 1
    by_role = {"user": tally.question_chars, "assistant": tally.answer_chars}
    for turn in record.turns:
        if turn.role in by_role:
            by_role[turn.role][len(turn.text)] += 1
    tally.turns[sum(turn.role == "assistant" for turn in record.turns)] += 1


def tally_folder(root: Path, *, workers: int, on_shard: Callable[[], None] = lambda: None) -> Tally:
    """Count all shards of a folder, in parallel."""
    paths = shard_paths(root)
    names = [path.relative_to(root).as_posix() for path in paths]
    total = Tally()
    with ProcessPoolExecutor(min(workers, len(paths)), get_context("spawn")) as pool:
        for tally in pool.map(tally_shard, paths, names):
            total.add(tally)
            on_shard()
    return total


def summarize(values: Counter[Any]) -> dict[str, float]:
    """Number, least, 5th, 50th and 95th percentile (nearest rank), greatest, mean and sum."""
    total = values.total()
    if not total:
        return {"count": 0}
    ordered = sorted(values.items())
    summary: dict[str, float] = {"count": total, "min": ordered[0][0], "max": ordered[-1][0]}
    for name, share in (("p5", 0.05), ("median", 0.5), ("p95", 0.95)):
        seen = 0
        for value, number in ordered:
            seen += number
            if seen >= share * total:
                summary[name] = value
                break
    summary["sum"] = sum(value * number for value, number in ordered)
    summary["mean"] = round(summary["sum"] / total, 3)
    return summary


def as_json(
    tally: Tally, tokens: Sequence[TokenCounts], *, min_pixels: int, max_pixels: int
) -> dict[str, Any]:
    """All figures; ``tokens`` were counted within the pixel bounds."""
    num_images = tally.image_kib.total()
    heights: Counter[int] = Counter()
    widths: Counter[int] = Counter()
    aspects: Counter[float] = Counter()
    megapixels: Counter[float] = Counter()
    for (height, width), number in tally.sizes.items():
        heights[height] += number
        widths[width] += number
        aspects[round(width / height, 2)] += number
        megapixels[round(height * width / 1e6, 3)] += number
    return {
        "samples": tally.samples.total(),
        "images": num_images,
        "videos": tally.video_kib.total(),
        "images_of_unknown_size": num_images - tally.sizes.total(),
        "sources": dict(tally.samples.most_common()),
        "height": summarize(heights),
        "width": summarize(widths),
        "aspect_ratio": summarize(aspects),
        "megapixels": summarize(megapixels),
        "image_kib": summarize(tally.image_kib),
        "video_kib": summarize(tally.video_kib),
        "images_per_sample": dict(sorted(tally.images.items())),
        "videos_per_sample": dict(sorted(tally.videos.items())),
        "turns_per_sample": dict(sorted(tally.turns.items())),
        "question_chars": summarize(tally.question_chars),
        "answer_chars": summarize(tally.answer_chars),
        "unusable": {"samples": tally.unusable.total(), "damaged_places": tally.damage.total()},
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
        "visual_tokens": {
            one.tokenizer: summarize(one.images)
            | {"histogram": dict(sorted(one.images.items())), "refused": one.refused}
            for one in tokens
            if one.from_sizes
        },
        "visual_tokens_known_after_decoding": [t.tokenizer for t in tokens if not t.from_sizes],
    }


def find_tokenizers(names: Sequence[str]) -> list["VisualTokenizer"]:
    """The tokenizers of presets' names or YAML files; every preset where there are no names.

    Raises:
        OptionError: an unknown name, or a file that makes no tokenizer.
    """
    # torch comes along: seconds and 200 MB that the processes which prepare shards do without
    from dct_tokenizer import TokenizerConfigError, build_tokenizer, list_presets

    try:
        return [build_tokenizer(name) for name in names or list_presets()]
    except TokenizerConfigError as error:
        raise OptionError(f"--tokenizer: {error}") from error


def count_tokens(
    sizes: Counter[tuple[int, int]],
    tokenizers: Iterable["VisualTokenizer"],
    *,
    min_pixels: int,
    max_pixels: int,
) -> Iterator[TokenCounts]:
    """Visual tokens of still images by (height, width), one tokenizer after the other.

    Takes about 10 µs a distinct size and tokenizer. The pixel bounds are those of a resized image;
    they replace the tokenizers' own.
    """
    bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    # images that are resized alike stand in a row: the arrays of a plan are cached by grid, and
    # making them anew each time would take 20 times as long as the rest
    ordered = sorted(sizes, key=lambda size: _resized(size, **bounds))
    for tokenizer in tokenizers:
        if tokenizer.counts_from_header:
            yield _count(tokenizer.within(**bounds), ordered, sizes)
        else:
            yield TokenCounts(tokenizer=tokenizer.name, from_sizes=False)


def _resized(size: tuple[int, int], **bounds: int) -> tuple[int, int]:
    try:
        return smart_resize(*size, factor=FACTOR, **bounds)
    except PlanError:
        return size  # which most tokenizers refuse as well


def _count(
    tokenizer: "VisualTokenizer",
    ordered: list[tuple[int, int]],
    sizes: Counter[tuple[int, int]],
) -> TokenCounts:
    images: Counter[int] = Counter()
    refused = 0
    for size in ordered:
        try:
            images[tokenizer.plan(*size).num_llm_tokens] += sizes[size]
        except PlanError:
            refused += sizes[size]
    return TokenCounts(tokenizer=tokenizer.name, from_sizes=True, images=images, refused=refused)
