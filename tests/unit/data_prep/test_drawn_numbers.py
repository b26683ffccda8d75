"""Pages of numbers and lines: the answer stands on the page, as fine as its source says."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from data_prep.drawn.dataset import write_drawn_dataset
from data_prep.drawn.entries import COLLECTIONS
from data_prep.drawn.fine import DIRECTIONS
from data_prep.drawn.frames import (
    DIGIT_HEIGHTS,
    LINE,
    PERIODS,
    TILE,
    TILES,
    lines_drawer,
    numbers_drawer,
)

SIZE = (224, 224)


def tiles(picture):
    """Colour name → the 56 × 56 field with a whole frame of that colour."""
    pixels = np.asarray(picture)
    found = {}
    for top in range(0, pixels.shape[0], TILE):
        for left in range(0, pixels.shape[1], TILE):
            field = pixels[top : top + TILE, left : left + TILE]
            for name, color in TILES.items():
                frame = np.ones((TILE, TILE), dtype=bool)
                frame[LINE:-LINE, LINE:-LINE] = False
                if (field[frame] == color).all():
                    found[name] = field
    return found


def ink(field):
    """bool (50, 50): where the inside of a frame is more ink than page."""
    inside = field[LINE:-LINE, LINE:-LINE].astype(int)
    return np.abs(inside - inside[0, 0]).max(axis=2) > 50


@pytest.mark.parametrize("height", DIGIT_HEIGHTS)
def test_every_word_of_the_answer_has_its_tile(height):
    for seed in range(12):
        drawing = numbers_drawer(height)(Random(seed), SIZE)
        (turn,) = drawing.turns
        names = [word.partition(":")[0] for word in turn.answer.split()]
        assert names == [name for name in TILES if name in names]
        assert set(tiles(drawing.images[0])) == set(names)
        assert all(len(word.partition(":")[2]) == 2 for word in turn.answer.split())


@pytest.mark.parametrize("height", DIGIT_HEIGHTS)
def test_digits_are_as_high_as_their_source_says(height):
    heights = []
    for seed in range(12):
        drawing = numbers_drawer(height)(Random(seed), SIZE)
        for field in tiles(drawing.images[0]).values():
            rows = np.flatnonzero(ink(field).any(axis=1))
            heights.append(rows[-1] - rows[0] + 1)
    assert abs(np.median(heights) - height) <= max(1, height // 10)


def direction_of(field, period):
    """The direction along which the lines do not change, and that they repeat after `period`."""
    core = ink(field)[8:-8, 8:-8]
    same = {
        "flat": np.array_equal(core[:, 1:], core[:, :-1]),
        "upright": np.array_equal(core[1:], core[:-1]),
        "rising": np.array_equal(core[1:, :-1], core[:-1, 1:]),
        "falling": np.array_equal(core[1:, 1:], core[:-1, :-1]),
    }
    (name,) = [name for name, holds in same.items() if holds]
    along = core if name == "flat" else core.T
    assert np.array_equal(along[period:], along[:-period])
    assert not np.array_equal(along[1:], along[:-1])
    return name


@pytest.mark.parametrize("period", PERIODS)
def test_lines_run_as_the_answer_says_and_repeat_after_their_period(period):
    seen = set()
    for seed in range(20):
        drawing = lines_drawer(period)(Random(seed), SIZE)
        fields = tiles(drawing.images[0])
        for word in drawing.turns[0].answer.split():
            name, _, direction = word.partition(":")
            assert direction_of(fields[name], period) == direction
            seen.add(direction)
    assert seen == set(DIRECTIONS)


def test_other_numbers_are_other_pictures():
    pages = [numbers_drawer(14)(Random(seed), SIZE) for seed in range(30)]
    assert len({page.turns[0].answer for page in pages}) > 25
    counts = {len(page.turns[0].answer.split()) for page in pages}
    assert counts == {1, 2, 4, 8}


def test_growing_pages_go_from_one_frame_to_the_whole_size():
    pages = [numbers_drawer(14, growing=True)(Random(seed), SIZE) for seed in range(200)]
    sides = [page.images[0].width // TILE for page in pages]
    assert all(page.images[0].size[0] == page.images[0].size[1] for page in pages)
    assert set(sides) == {1, 2, 3, 4}
    assert sides.count(1) > sides.count(2) > sides.count(4)
    one = next(page for page in pages if page.images[0].width == TILE)
    assert len(one.turns[0].answer.split()) == 1


@pytest.mark.parametrize("detail", ["numbers", "lessons"])
def test_a_collection_is_independent_of_the_workers(detail, tmp_path):
    for workers in (1, 2):
        write_drawn_dataset(
            tmp_path / str(workers),
            num_entries=60,
            image_size=112,
            detail=detail,
            plant_defects=False,
            num_workers=workers,
        )
    names = sorted(p.name for p in (tmp_path / "1").iterdir())
    assert {n.removesuffix(".tar") for n in names if n.endswith(".tar")} <= set(
        COLLECTIONS[detail].kinds
    )
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    text = (tmp_path / "1" / "cambrian737k.json").read_text()
    questions = ("Read the numbers by color.", "Which way do the lines run?")
    asked = [f'"value": "<image>\\n{question}"' for question in questions]
    assert sum(text.count(question) for question in asked) == 60
    assert all(question in text for question in asked)
