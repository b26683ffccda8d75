"""Bar charts on a labelled axis from 0 to 9."""

from __future__ import annotations

from functools import lru_cache
from random import Random

from PIL import Image, ImageDraw

from data_prep.drawn.drawing import Drawing, Size, Turn
from data_prep.drawn.palette import COLORS, INKS, font

BARS = "ABCD"
HEIGHTS = range(1, 10)
LEFT, BOTTOM, TOP = 20, 20, 6


@lru_cache(maxsize=32)
def _axis(size: Size) -> Image.Image:
    """White page with the axis and its labels: the part that all charts of a size share."""
    width, height = size
    picture = Image.new("RGB", size, COLORS["white"])
    draw = ImageDraw.Draw(picture)
    base = height - BOTTOM
    for value in range(10):
        y = base - value * (base - TOP) / 9
        draw.line((LEFT - 3, y, width - 4, y), fill=(205, 205, 205))
        draw.text((LEFT - 6, y), str(value), fill=(0, 0, 0), font=font(12), anchor="rm")
    draw.line((LEFT, TOP, LEFT, base, width - 4, base), fill=(0, 0, 0), width=2)
    step = (width - LEFT - 4) / len(BARS)
    for index, name in enumerate(BARS):
        x = LEFT + (index + 0.5) * step
        draw.text((x, height - BOTTOM // 2), name, fill=(0, 0, 0), font=font(16), anchor="mm")
    return picture


def draw_chart(rng: Random, size: Size) -> Drawing:
    """Four bars A to D, each of its own colour and a height of 1 to 9."""
    picture = _axis(size).copy()
    draw = ImageDraw.Draw(picture)
    base = size[1] - BOTTOM
    step = (size[0] - LEFT - 4) / len(BARS)
    turns = []
    for index, (name, ink) in enumerate(zip(BARS, rng.sample(INKS, len(BARS)), strict=True)):
        value = rng.choice(HEIGHTS)
        x = LEFT + (index + 0.5) * step
        y = base - value * (base - TOP) / 9
        draw.rectangle((x - 0.34 * step, y, x + 0.34 * step, base - 1), fill=COLORS[ink])
        turns.append(Turn(question=f"How high is bar {name}?", answer=str(value)))
        if rng.random() < 0.25:
            turns.append(Turn(question=f"What color is bar {name}?", answer=ink, needs_color=True))
    return Drawing(pictures=(picture,), turns=tuple(turns), grayscale_ok=True)
