"""Self-contained HTML pages about a folder of shards: figures, plots, and some of its samples."""

import base64
import random
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import simplejpeg
from markupsafe import Markup

from data_prep.schema import ChatRecord, SchemaError
from data_prep.shards import ShardSample, iter_samples, open_shard, read_sample, shard_paths
from data_prep.stats import Tally
from dct_vl.pages.bars import bars, histogram
from dct_vl.pages.page import render_page

_LONGEST_TEXT = 400


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A sample with the bytes of its images, and of its videos' first frames."""

    key: str
    shard: str
    record: ChatRecord
    images: tuple[bytes, ...]
    first_frames: tuple[bytes, ...] = ()  #: JPEGs; of videos that cannot be read none

    @property
    def image_uris(self) -> list[str]:
        """Images and first frames as data: addresses; shards hold JPEG."""
        media = (*self.images, *self.first_frames)
        return ["data:image/jpeg;base64," + base64.b64encode(one).decode() for one in media]

    @property
    def turns(self) -> list[tuple[str, str]]:
        """(role, text) of each turn, long texts cut."""
        texts = ((turn.role, turn.text) for turn in self.record.turns)
        return [
            (r, t if len(t) <= _LONGEST_TEXT else t[: _LONGEST_TEXT - 1] + "…") for r, t in texts
        ]


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"


def pick_samples(root: Path, count: int, *, seed: int, faults: Tally | None = None) -> list[Shown]:
    """About ``count`` samples, from as many shards as possible; the same for the same seed.

    Samples that training would reject are left out; ``faults`` takes down what is wrong with them,
    and damaged places of the shards.
    """
    paths = shard_paths(root)
    rng = random.Random(seed)
    chosen = sorted(rng.sample(paths, min(count, len(paths))))
    shown: list[Shown] = []
    faults = faults or Tally()
    for position, path in enumerate(chosen):
        wanted = count * (position + 1) // len(chosen) - count * position // len(chosen)
        shown += _pick_in_shard(path, path.relative_to(root).as_posix(), wanted, rng, faults)
    return shown


def _pick_in_shard(
    path: Path, name: str, count: int, rng: random.Random, faults: Tally
) -> Iterator[Shown]:
    with open_shard(path) as shard:
        try:
            samples = list(iter_samples(shard, partial(faults.note_damage, name)))
        except (OSError, tarfile.ReadError) as error:
            faults.note_damage(name, f"it cannot be read: {error}")
            return
        for place in sorted(rng.sample(range(len(samples)), min(count, len(samples)))):
            sample = samples[place]
            try:
                record, parts = read_sample(sample, shard)
            except SchemaError as error:
                faults.note_unusable(name, sample.key, error)
                continue
            images = tuple(sample.parts[part].read(shard) for part in parts.images)
            frames = _first_frames(sample, parts.videos, shard)
            yield Shown(
                key=sample.key, shard=name, record=record, images=images, first_frames=frames
            )


def _first_frames(sample: ShardSample, parts: Sequence[str], shard: BinaryIO) -> tuple[bytes, ...]:
    if not parts:
        return ()
    # PyAV takes an eighth of a second to import, which sets of images do without
    from data_prep.video_file import VideoError, first_frame

    frames = []
    for part in parts:
        with suppress(VideoError):
            pixels = first_frame(sample.parts[part].read(shard))
            frames.append(simplejpeg.encode_jpeg(pixels, quality=90, colorspace="RGB"))
    return tuple(frames)


def preview_page(title: str, samples: list[Shown]) -> str:
    """Samples with their images and texts."""
    return render_page(
        "preview.html.jinja", {"title": title, "samples": samples}, package="data_prep"
    )


def stats_page(
    title: str,
    tally: Tally,
    stats: dict[str, Any],
    *,
    samples: list[Shown],
    manifest: dict[str, Any] | None,
) -> str:
    """Figures of ``stats.as_json`` with plots; ``manifest`` adds what preparation rejected."""
    context = {
        "title": title,
        "stats": stats,
        "samples": samples,
        "manifest": manifest,
        "plots": _plots(tally, stats),
        "cards": _cards(stats, manifest),
    }
    return render_page("stats.html.jinja", context, package="data_prep")


def _cards(stats: dict[str, Any], manifest: dict[str, Any] | None) -> list[dict[str, str]]:
    shown = {
        "samples": f"{stats['samples']:,}",
        "images": f"{stats['images']:,}",
        "sources": str(len(stats["sources"])),
    }
    if stats["width"]["count"]:
        shown["median width × height"] = f"{stats['width']['median']}×{stats['height']['median']}"
    if stats["images"]:
        shown["median image"] = f"{stats['image_kib']['median']} KiB"
    if stats["videos"]:
        shown["videos"] = f"{stats['videos']:,}"
        shown["median video"] = f"{stats['video_kib']['median']:,} KiB"
    shown["characters, median answer"] = str(stats["answer_chars"].get("median", "–"))
    if manifest:
        rejected = manifest["entries"] - manifest["kept"]
        shown[f"of {manifest['entries']:,} entries rejected"] = f"{rejected:,}"
    return [{"value": value, "label": label, "note": ""} for label, value in shown.items()]


def _plots(tally: Tally, stats: dict[str, Any]) -> list[tuple[str, Markup]]:
    """(caption, SVG) of each plot."""
    distributions: list[tuple[str, Counter[Any], str]] = []
    if tally.sizes:
        heights: Counter[int] = Counter()
        widths: Counter[int] = Counter()
        aspects: Counter[float] = Counter()
        for (height, width), number in tally.sizes.items():
            heights[height] += number
            widths[width] += number
            aspects[width / height] += number
        distributions += [
            ("Width", widths, "pixels"),
            ("Height", heights, "pixels"),
            ("Aspect ratio", aspects, "width / height"),
        ]
        # tokenizers that give the same counts share a plot
        alike: dict[tuple[tuple[int, int], ...], list[str]] = {}
        for name, tokens in stats["visual_tokens"].items():
            alike.setdefault(tuple(tokens["histogram"].items()), []).append(name)
        distributions += [
            ("Visual tokens: " + ", ".join(names), Counter(dict(counts)), "tokens an image")
            for counts, names in alike.items()
            if counts
        ]
    if tally.image_kib:
        distributions.append(("Size of an image", tally.image_kib, "KiB"))
    if tally.video_kib:
        distributions.append(("Size of a video", tally.video_kib, "KiB"))
    distributions += [
        ("Questions with an answer", tally.turns, "a sample"),
        ("Length of a question", tally.question_chars, "characters"),
        ("Length of an answer", tally.answer_chars, "characters"),
    ]
    by_source = "Samples by source"
    return [
        (by_source, bars("sources", stats["sources"], label="samples", description=by_source)),
        *(
            (caption, histogram(f"plot{n}", counts, label=label, description=caption))
            for n, (caption, counts, label) in enumerate(distributions)
        ),
    ]
