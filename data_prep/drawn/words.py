"""Pictures of short words in large print."""

from __future__ import annotations

from random import Random

from PIL import Image, ImageDraw

from data_prep.drawn.drawing import Drawing, Size, Turn
from data_prep.drawn.palette import COLORS, INKS, WORDS, contrasting, font


def draw_words(rng: Random, size: Size) -> Drawing:
    """One word in the upper and one in the lower half, both in one colour on another.

    Letters are 26 to 30 % of the shorter side high, about 45 pixels at 168: each letter is then
    larger than a 28-pixel cell.
    """
    width, height = size
    ink = rng.choice(list(COLORS))
    # Text is read by its edges: it needs a step in brightness, not only in hue.
    ground = contrasting(rng, ink, min_luma=75)
    picture = Image.new("RGB", size, COLORS[ground])
    draw = ImageDraw.Draw(picture)
    words = rng.sample(WORDS, 2)
    pixels = int(rng.uniform(0.26, 0.30) * min(size))
    for word, centre in zip(words, (0.27, 0.73), strict=True):
        x = width / 2 + rng.uniform(-0.04, 0.04) * width
        y = (centre + rng.uniform(-0.04, 0.04)) * height
        draw.text((x, y), word, fill=COLORS[ink], font=font(pixels), anchor="mm")
    return Drawing(
        pictures=(picture,),
        turns=(
            Turn(question="What is the top word?", answer=words[0]),
            Turn(question="What is the bottom word?", answer=words[1]),
            Turn(question="What color are the letters?", answer=ink, needs_color=True),
        ),
        grayscale_ok=True,
        cutout_ok=ink in INKS,
    )
