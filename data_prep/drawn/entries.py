"""Draw one entry of the dataset, a function of (seed, index) alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, TypeAlias

from data_prep.drawn.coarse import (
    draw_chart,
    draw_count,
    draw_dots,
    draw_pair,
    draw_scene,
    draw_words,
)
from data_prep.drawn.drawing import WORDS, Drawer, Drawing, Size, Turn
from data_prep.drawn.files import ImageFormat, encode, encode_rotated, suffix, truncate
from data_prep.drawn.fine import draw_hatch, draw_print, draw_ticks
from data_prep.drawn.frames import DIGIT_HEIGHTS, PERIODS, lines_drawer, numbers_drawer

Detail: TypeAlias = Literal["coarse", "fine", "numbers", "lessons"]
#: How often each height of digits and each period of lines comes, in pixels.
NUMBER_WEIGHTS = dict.fromkeys(DIGIT_HEIGHTS, 2)
LINE_WEIGHTS = dict.fromkeys(PERIODS, 1)
#: In lessons: reading is learnt from what is large.
LESSON_NUMBER_WEIGHTS = {28: 8, 20: 6, 14: 4, 10: 2, 7: 2, 6: 2}
LESSON_LINE_WEIGHTS = {8: 2, 6: 2, 4: 1, 3: 1}
#: What is wrong or unusual with an entry on purpose. "rotated" is usable, the others are not.
Planted: TypeAlias = Literal["missing", "truncated", "rotated"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of entry: how often it comes, where its images lie, who draws them."""

    weight: int
    #: Folder inside the tar; its first part is the source, hence the tar's name.
    folder: str
    draw: Drawer


FORMATS: dict[ImageFormat, int] = {
    "jpeg": 84,
    "png": 7,
    "png_alpha": 3,
    "png_palette": 4,
    "png_16bit": 2,
}
#: Number of turns in 100 entries: dense supervision, and some short conversations.
NUM_TURNS = {1: 6, 2: 14, 3: 24, 4: 32, 5: 24}


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What the entries of one level of detail are made of."""

    kinds: dict[str, Kind]
    #: JPEG quality. Fine details must not be lost to compression: that is the tokenizer's exam,
    #: not JPEG's.
    quality: int
    #: Weight of entries without an image, beside the kinds' own.
    text_weight: int = 6
    formats: Mapping[ImageFormat, int] = field(default_factory=lambda: FORMATS)
    #: All images square and of one size, and before their question: nothing differs from sample
    #: to sample but what is drawn.
    uniform: bool = False


def _frame_kinds(
    numbers: Mapping[int, int], lines: Mapping[int, int], *, growing: bool
) -> dict[str, Kind]:
    """One kind, and one source, for each height of digits and each period of lines."""
    drawers = {
        f"numbers_{h}px": (w, numbers_drawer(h, growing=growing)) for h, w in numbers.items()
    }
    drawers |= {f"lines_{p}px": (w, lines_drawer(p, growing=growing)) for p, w in lines.items()}
    return {
        name: Kind(weight=weight, folder=f"{name}/images", draw=draw)
        for name, (weight, draw) in drawers.items()
    }


COLLECTIONS: dict[Detail, Collection] = {
    "coarse": Collection(
        kinds={
            "scene": Kind(weight=36, folder="shapes/images", draw=draw_scene),
            "count": Kind(weight=12, folder="shapes/images", draw=draw_count),
            "chart": Kind(weight=14, folder="charts/train/images", draw=draw_chart),
            "words": Kind(weight=14, folder="words/images", draw=draw_words),
            "dots": Kind(weight=12, folder="positions/images", draw=draw_dots),
            "pair": Kind(weight=6, folder="pairs/images", draw=draw_pair),
        },
        quality=88,
    ),
    "fine": Collection(
        kinds={
            "print": Kind(weight=34, folder="prints/images", draw=draw_print),
            "hatch": Kind(weight=30, folder="hatches/images", draw=draw_hatch),
            "ticks": Kind(weight=30, folder="ticks/images", draw=draw_ticks),
        },
        quality=96,
    ),
    "numbers": Collection(
        kinds=_frame_kinds(NUMBER_WEIGHTS, LINE_WEIGHTS, growing=False),
        quality=96,
        text_weight=0,
        formats={"jpeg": 1},
        uniform=True,
    ),
    "lessons": Collection(
        kinds=_frame_kinds(LESSON_NUMBER_WEIGHTS, LESSON_LINE_WEIGHTS, growing=True),
        quality=96,
        text_weight=0,
        formats={"jpeg": 1},
        uniform=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One element of the JSON and the files that go with it."""

    kind: str
    #: The JSON object: id, image (str, list of str, or absent), conversations.
    record: dict[str, Any]
    #: Path inside the source's tar → file bytes. Empty for text, and where the file is missing.
    files: dict[str, bytes]
    image_format: ImageFormat | None
    num_turns: int


def random_size(rng: Random, short_side: int) -> Size:
    """(width, height) in pixels: square, 4:3 either way, or a little off any patch grid."""
    long_side = short_side * 4 // 3
    shape = rng.choices(["square", "wide", "tall", "odd"], weights=[60, 15, 15, 10])[0]
    if shape == "square":
        return short_side, short_side
    if shape == "wide":
        return long_side, short_side
    if shape == "tall":
        return short_side, long_side
    return short_side + rng.randint(-9, 9), short_side + rng.randint(-9, 9)


def draw_entry(
    seed: int,
    index: int,
    *,
    image_size: int,
    detail: Detail = "coarse",
    planted: Planted | None = None,
) -> Entry:
    """Entry ``index`` of the collection ``seed``; the bytes depend on nothing but the arguments.

    image_size: shorter side of the images in pixels.
    """
    # A string seed goes through SHA-512: neighbouring indices give unrelated streams.
    rng = Random(f"{seed}/{index}/{detail}")
    collection = COLLECTIONS[detail]
    kinds = collection.kinds
    weights = {name: kind.weight for name, kind in kinds.items()}
    weights["text"] = collection.text_weight
    name = _choice(rng, weights)
    if planted is not None:
        # A planted defect needs one image, and an answer that depends on its orientation.
        name = next(iter(kinds))
    if name == "text":
        return _text_entry(rng, index)
    return _image_entry(rng, index, name, collection, image_size, planted)


def _choice(rng: Random, weights: Mapping[Any, int]) -> Any:
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def _image_entry(
    rng: Random,
    index: int,
    name: str,
    collection: Collection,
    image_size: int,
    planted: Planted | None,
) -> Entry:
    kind = collection.kinds[name]
    size = (image_size, image_size) if collection.uniform else random_size(rng, image_size)
    drawing = kind.draw(rng, size)
    chosen: ImageFormat = _choice(rng, collection.formats)
    if planted is not None:
        chosen = "jpeg"
    image_format, turns = _fit_format(drawing, chosen)
    turns = rng.sample(turns, min(len(turns), _choice(rng, NUM_TURNS)))
    # Names with dots are as common in real collections as they are troublesome in WebDataset.
    parts = [""] if len(drawing.images) == 1 else [".first", ".second"]
    paths = [f"{kind.folder}/{index:06d}{part}{suffix(image_format)}" for part in parts]
    files = {
        path: _file_bytes(image, image_format, collection.quality, planted)
        for path, image in zip(paths, drawing.images, strict=True)
    }
    at_end = not collection.uniform and rng.random() < 0.3
    record = {
        "id": f"{name}-{index:06d}",
        "image": paths[0] if len(paths) == 1 else paths,
        "conversations": _conversation(turns, len(paths), at_end=at_end),
    }
    return Entry(
        kind=name,
        record=record,
        files={} if planted == "missing" else files,
        image_format=image_format,
        num_turns=len(turns),
    )


def _file_bytes(image: Any, fmt: ImageFormat, quality: int, planted: Planted | None) -> bytes:
    if planted == "rotated":
        return encode_rotated(image, quality=quality)
    data = encode(image, fmt, quality=quality)
    return truncate(data) if planted == "truncated" else data


def _fit_format(drawing: Drawing, chosen: ImageFormat) -> tuple[ImageFormat, list[Turn]]:
    """The format, or plain PNG where it would hide every answer, and the turns that survive it."""
    if chosen == "png_16bit" and drawing.grayscale_ok:
        return chosen, [turn for turn in drawing.turns if not turn.needs_color]
    if chosen == "png_alpha" and drawing.cutout_ok:
        return chosen, [turn for turn in drawing.turns if not turn.needs_ground]
    plain: ImageFormat = "png" if chosen in ("png_16bit", "png_alpha") else chosen
    return plain, list(drawing.turns)


def _conversation(turns: list[Turn], num_images: int, *, at_end: bool) -> list[dict[str, str]]:
    """LLaVA's layout: human and gpt in turn, the image placeholders in the first question."""
    messages = []
    for number, turn in enumerate(turns):
        question = turn.question
        if number == 0 and num_images:
            images = "\n".join(["<image>"] * num_images)
            question = f"{question}\n{images}" if at_end else f"{images}\n{question}"
        messages.append({"from": "human", "value": question})
        messages.append({"from": "gpt", "value": turn.answer})
    return messages


def _text_entry(rng: Random, index: int) -> Entry:
    turns = []
    for word, number in zip(rng.sample(WORDS, 2), rng.sample(range(1, 9), 2), strict=True):
        turns.append(Turn(question=f"Say the word {word}.", answer=word))
        turns.append(Turn(question=f"What comes after {number}?", answer=str(number + 1)))
    turns = rng.sample(turns, rng.randint(1, len(turns)))
    return Entry(
        kind="text",
        record={
            "id": f"text-{index:06d}",
            "conversations": _conversation(turns, 0, at_end=False),
        },
        files={},
        image_format=None,
        num_turns=len(turns),
    )
