"""The answers of a drawn entry can be read off its picture."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from data_prep.drawn import coarse, fine
from data_prep.drawn.drawing import (
    COLORS,
    INKS,
    POSITIONS,
    SHAPES,
    WORDS,
    Drawing,
    cell_centre,
    font,
)
from data_prep.drawn.entries import draw_entry

SIZES = [(168, 168), (224, 168), (168, 224), (161, 175)]
SEEDS = range(24)


def answers(drawing: Drawing) -> dict[str, str]:
    return {turn.question: turn.answer for turn in drawing.turns}


def is_color(picture: Image.Image, name: str) -> np.ndarray:
    """Mask (H, W) of the pixels that have exactly the named colour."""
    return (np.asarray(picture) == COLORS[name]).all(axis=-1)


def position_of(mask: np.ndarray) -> str:
    y, x = ndimage.center_of_mass(mask)
    height, width = mask.shape
    return POSITIONS[int(y * 3 // height) * 3 + int(x * 3 // width)]


@pytest.mark.parametrize("size", SIZES)
def test_scene_shows_color_ground_and_position(size):
    for seed in SEEDS:
        drawing = coarse.draw_scene(Random(seed), size)
        truth = answers(drawing)
        picture = drawing.images[0]
        assert picture.size == size
        ink = is_color(picture, truth["What color is the shape?"])
        ground = is_color(picture, truth["What color is the background?"])
        assert (ink | ground).all()
        assert position_of(ink) == truth["Where is the shape?"]
        assert ink.mean() > 0.01


def test_shapes_differ_in_the_share_of_their_box_that_they_fill():
    fills = {}
    for seed in range(200):
        drawing = coarse.draw_scene(Random(seed), (168, 168))
        truth = answers(drawing)
        mask = is_color(drawing.images[0], truth["What color is the shape?"])
        rows, columns = np.nonzero(mask)
        box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        upper, centre = box[: len(box) // 2].mean(), box[len(box) // 2, box.shape[1] // 2]
        features = (round(box.mean(), 1), bool(upper > box.mean() - 0.1), bool(centre))
        fills.setdefault(truth["Which shape is it?"], Counter())[features] += 1
    assert set(fills) == set(SHAPES)
    typical = {name: counts.most_common(1)[0][0] for name, counts in fills.items()}
    assert len(set(typical.values())) == len(SHAPES), typical


@pytest.mark.parametrize("size", SIZES)
def test_count_is_the_number_of_separate_circles(size):
    for seed in SEEDS:
        drawing = coarse.draw_count(Random(seed), size)
        truth = answers(drawing)
        ink = is_color(drawing.images[0], truth["What color are the circles?"])
        assert str(ndimage.label(ink)[1]) == truth["How many circles are there?"]


def test_dots_lie_where_the_answers_say_and_questions_do_not_answer_each_other():
    for seed in SEEDS:
        drawing = coarse.draw_dots(Random(seed), (224, 168))
        named: list[str] = []
        for question, answer in answers(drawing).items():
            if question.startswith("Where is the "):
                ink, position = question.removeprefix("Where is the ").removesuffix(" dot?"), answer
            else:
                ink = answer
                position = question.removeprefix("What color is the dot at the ").removesuffix("?")
            assert position_of(is_color(drawing.images[0], ink)) == position
            named += [ink, position]
        assert len(named) == len(set(named)) == 8


def test_pair_questions_name_the_picture_they_mean():
    for seed in SEEDS:
        drawing = coarse.draw_pair(Random(seed), (168, 168))
        truth = answers(drawing)
        for picture, ordinal in zip(drawing.images, ("first", "second"), strict=True):
            ink = is_color(picture, truth[f"What color is the shape in the {ordinal} picture?"])
            assert position_of(ink) == truth[f"Where is the shape in the {ordinal} picture?"]


@pytest.mark.parametrize("size", SIZES)
def test_bar_tops_reach_the_grid_line_of_the_answer(size):
    for seed in SEEDS:
        drawing = coarse.draw_chart(Random(seed), size)
        truth = answers(drawing)
        pixels = np.asarray(drawing.images[0]).astype(int)
        bars = {ink: is_color(drawing.images[0], ink) for ink in INKS}
        step = (size[0] - coarse.LEFT - 4) / 4
        base = size[1] - coarse.BOTTOM
        for index, name in enumerate(coarse.BARS):
            x = int(coarse.LEFT + (index + 0.5) * step)
            ink = next(ink for ink, mask in bars.items() if mask[base - 3, x])
            top = np.nonzero(bars[ink][:, x])[0].min()
            height = (base - top) / ((base - coarse.TOP) / 9)
            assert round(height) == int(truth[f"How high is bar {name}?"])
            assert truth.get(f"What color is bar {name}?", ink) == ink
        assert (pixels[:, : coarse.LEFT - 4].sum(axis=-1) < 384).any(), "axis labels"


def test_words_match_their_rendering_and_no_other_word():
    for seed in range(6):
        drawing = coarse.draw_words(Random(seed), (168, 168))
        truth = answers(drawing)
        picture = drawing.images[0]
        ground = picture.getpixel((0, 0))
        ink = (np.asarray(picture) != ground).any(axis=-1)
        for half, question in ((ink[:84], "top"), (ink[84:], "bottom")):
            assert closest_word(half) == truth[f"What is the {question} word?"]


def closest_word(mask: np.ndarray) -> str:
    rows, columns = np.nonzero(mask)
    crop = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    scores = {}
    for word in WORDS:
        for pixels in range(42, 52):
            canvas = Image.new("1", (250, 90), 0)
            ImageDraw.Draw(canvas).text((125, 45), word, 1, font=font(pixels), anchor="mm")
            page = np.asarray(canvas)
            r, c = np.nonzero(page)
            glyphs = page[r.min() : r.max() + 1, c.min() : c.max() + 1]
            if max(abs(a - b) for a, b in zip(glyphs.shape, crop.shape, strict=True)) <= 2:
                h, w = min(len(glyphs), len(crop)), min(glyphs.shape[1], crop.shape[1])
                same = (glyphs[:h, :w] == crop[:h, :w]).mean()
                scores[word] = max(scores.get(word, 0.0), same)
    return max(scores, key=lambda word: scores[word])


@pytest.mark.parametrize("size", SIZES)
def test_words_stay_on_the_picture(size):
    for seed in range(60):
        picture = coarse.draw_words(Random(seed), size).images[0]
        ink = (np.asarray(picture) != picture.getpixel((0, 0))).any(axis=-1)
        assert not ink[:, [0, -1]].any()
        assert not ink[[0, -1]].any()


def field(mask: np.ndarray, position: str) -> np.ndarray:
    x, y = cell_centre(POSITIONS.index(position), mask.shape[::-1])
    return mask[round(y) - 27 : round(y) + 28, round(x) - 27 : round(x) + 28]


def test_ticks_count_one_pixel_lines():
    for seed in SEEDS:
        drawing = fine.draw_ticks(Random(seed), (224, 168))
        mask = np.asarray(drawing.images[0].convert("L")) < 128
        for question, answer in answers(drawing).items():
            position = question.removeprefix("How many lines are at the ").removesuffix("?")
            columns = field(mask, position).any(axis=0)
            assert str(ndimage.label(columns)[1]) == answer


def test_hatch_lines_run_as_the_answer_says():
    shifts = {"flat": (0, 1), "upright": (1, 0), "rising": (-1, 1), "falling": (1, 1)}
    for seed in SEEDS:
        drawing = fine.draw_hatch(Random(seed), (168, 168))
        mask = np.asarray(drawing.images[0].convert("L")) < 128
        for question, answer in answers(drawing).items():
            position = question.removeprefix("Which way do the lines at the ").removesuffix(" run?")
            patch = field(mask, position)[17:38, 17:38].astype(float)
            # A shift along the lines changes nothing, any other does.
            change = {
                name: np.abs(patch - np.roll(patch, (down, right), (0, 1)))[1:-1, 1:-1].mean()
                for name, (down, right) in shifts.items()
            }
            assert min(change, key=lambda name: change[name]) == answer


def test_print_is_seven_pixels_high():
    drawing = fine.draw_print(Random(1), (168, 168))
    mask = np.asarray(drawing.images[0].convert("L")) < 128
    for position in POSITIONS:
        rows = np.nonzero(field(mask, position).any(axis=1))[0]
        assert 6 <= np.ptp(rows) + 1 <= 8
    assert len(answers(drawing)) == 9


@pytest.mark.parametrize("detail", ["coarse", "fine"])
def test_no_answer_is_much_more_frequent_than_the_others_of_its_question(detail):
    """Guessing must be poor: that is what makes a score above the blank picture mean something."""
    given: dict[str, Counter[str]] = {}
    for index in range(3000):
        entry = draw_entry(11, index, image_size=112, detail=detail)
        if entry.kind in ("text", "print"):
            continue
        for human, gpt in zip(*[iter(entry.record["conversations"])] * 2, strict=True):
            question = human["value"].replace("<image>", "").strip()
            given.setdefault(f"{entry.kind}: {question}", Counter())[gpt["value"]] += 1
    well_sampled = {question: c for question, c in given.items() if c.total() >= 150}
    assert len(well_sampled) >= 6
    for question, counts in well_sampled.items():
        assert len(counts) >= 4, question
        uniform, total = 1 / len(counts), counts.total()
        share = counts.most_common(1)[0][1] / total
        # A quarter above uniform, plus four standard deviations of the sampling.
        assert share <= 1.25 * uniform + 4 * (uniform / total) ** 0.5, (question, counts)
