"""Draw images whose answers are in details of one to seven pixels.

A view at half resolution blurs them, so that they tell tokenizers apart that large filled shapes
do not. Each has nine fields, each field an answer of its own: dense supervision.
"""

from __future__ import annotations

from random import Random

from PIL import Image, ImageDraw

from data_prep.drawn.drawing import POSITIONS, Drawing, Size, Turn, cell_centre, font

DIRECTIONS: dict[str, tuple[int, int]] = {
    "flat": (0, 1),
    "upright": (1, 0),
    "rising": (1, 1),
    "falling": (1, -1),
}
#: Pixels from one line to the next. At half resolution a period of 3 is beyond the Nyquist limit
#: of two samples per period; 4 lies on it.
HATCH_PERIODS = (3, 4)
LINE_COUNTS = range(2, 10)
#: Pixels from one counted line to the next. It varies, or the width would give the count away.
LINE_STEPS = (2, 3, 4)
INK, PAGE = (0, 0, 0), (255, 255, 255)


def _fields(rng: Random, size: Size) -> list[tuple[str, tuple[int, int]]]:
    """Name and jittered centre of each of the nine fields."""
    fields = []
    for index, name in enumerate(POSITIONS):
        x, y = cell_centre(index, size)
        fields.append((name, (round(x) + rng.randint(-5, 5), round(y) + rng.randint(-5, 5))))
    return fields


def draw_print(rng: Random, size: Size) -> Drawing:
    """Nine two-digit numbers whose digits are 7 pixels high."""
    image = Image.new("RGB", size, PAGE)
    draw = ImageDraw.Draw(image)
    turns = []
    for name, centre in _fields(rng, size):
        number = str(rng.randint(10, 99))
        draw.text(centre, number, fill=INK, font=font(10), anchor="mm")
        turns.append(Turn(question=f"Which number is at the {name}?", answer=number))
    return Drawing(images=(image,), turns=tuple(turns), grayscale_ok=True)


def draw_hatch(rng: Random, size: Size) -> Drawing:
    """Nine squares filled with lines 3 or 4 pixels apart, in one of four directions."""
    image = Image.new("RGB", size, PAGE)
    pixels = image.load()
    assert pixels is not None
    half = min(size) // 8
    turns = []
    for name, (x, y) in _fields(rng, size):
        direction = rng.choice(list(DIRECTIONS))
        dx, dy = DIRECTIONS[direction]
        period = rng.choice(HATCH_PERIODS)
        for row in range(max(0, y - half), min(size[1], y + half)):
            for column in range(max(0, x - half), min(size[0], x + half)):
                if (column * dx + row * dy) % period == 0:
                    pixels[column, row] = INK
        turns.append(Turn(question=f"Which way do the lines at the {name} run?", answer=direction))
    return Drawing(images=(image,), turns=tuple(turns), grayscale_ok=True)


def draw_ticks(rng: Random, size: Size) -> Drawing:
    """Nine groups of two to nine upright lines, one pixel wide and two to four apart."""
    image = Image.new("RGB", size, PAGE)
    draw = ImageDraw.Draw(image)
    turns = []
    for name, (x, y) in _fields(rng, size):
        count = rng.choice(LINE_COUNTS)
        step = rng.choice(LINE_STEPS)
        left = x - step * (count - 1) // 2
        height = rng.randint(6, 11)
        for index in range(count):
            draw.line((left + step * index, y - height, left + step * index, y + height), INK)
        turns.append(Turn(question=f"How many lines are at the {name}?", answer=str(count)))
    return Drawing(images=(image,), turns=tuple(turns), grayscale_ok=True)
