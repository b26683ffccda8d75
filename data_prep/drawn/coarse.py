"""Draw images of large shapes, bar charts and words in large print."""

from __future__ import annotations

from functools import lru_cache
from random import Random

from PIL import Image, ImageDraw

from data_prep.drawn.drawing import (
    COLORS,
    INKS,
    POSITIONS,
    SHAPES,
    WORDS,
    Drawing,
    Size,
    Turn,
    cell_centre,
    contrasting,
    font,
)

COUNTS = range(1, 7)


def _jittered(rng: Random, position: int, size: Size, amount: float) -> tuple[float, float]:
    x, y = cell_centre(position, size)
    return x + rng.uniform(-amount, amount), y + rng.uniform(-amount, amount)


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, ink: str, ground: str
) -> None:
    color = COLORS[ink]
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        draw.ellipse(box, fill=color)
    elif shape == "square":
        draw.rectangle(box, fill=color)
    elif shape == "triangle":
        draw.polygon(
            [(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], fill=color
        )
    elif shape == "diamond":
        draw.polygon([(x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y)], color)
    elif shape == "cross":
        arm = radius * 0.34
        draw.rectangle((x - arm, y - radius, x + arm, y + radius), fill=color)
        draw.rectangle((x - radius, y - arm, x + radius, y + arm), fill=color)
    else:
        draw.ellipse(box, fill=color)
        hole = radius * 0.55
        draw.ellipse((x - hole, y - hole, x + hole, y + hole), fill=COLORS[ground])


def _shape_image(rng: Random, size: Size) -> tuple[Image.Image, dict[str, str]]:
    ink = rng.choice(list(COLORS))
    ground = contrasting(rng, ink)
    shape = rng.choice(SHAPES)
    position = rng.randrange(9)
    image = Image.new("RGB", size, COLORS[ground])
    cell = min(size) / 3
    radius = rng.uniform(0.38, 0.45) * cell
    x, y = _jittered(rng, position, size, 0.04 * cell)
    _draw_shape(ImageDraw.Draw(image), shape, x, y, radius, ink, ground)
    truth = {"ink": ink, "ground": ground, "shape": shape, "position": POSITIONS[position]}
    return image, truth


def draw_scene(rng: Random, size: Size) -> Drawing:
    """One big shape at one of nine positions: its colour, kind, position and the background."""
    image, truth = _shape_image(rng, size)
    return Drawing(
        images=(image,),
        turns=(
            Turn(question="What color is the shape?", answer=truth["ink"], needs_color=True),
            Turn(
                question="What color is the background?",
                answer=truth["ground"],
                needs_color=True,
                needs_ground=True,
            ),
            Turn(question="Where is the shape?", answer=truth["position"]),
            Turn(question="Which shape is it?", answer=truth["shape"]),
        ),
        # White and black shapes would vanish on the page that replaces the transparency.
        cutout_ok=truth["ink"] in INKS,
    )


def draw_pair(rng: Random, size: Size) -> Drawing:
    """Two images of one shape each; every question says which image it means."""
    images, turns = [], []
    for ordinal in ("first", "second"):
        image, truth = _shape_image(rng, size)
        images.append(image)
        about = f"in the {ordinal} picture"
        turns += [
            Turn(
                question=f"What color is the shape {about}?",
                answer=truth["ink"],
                needs_color=True,
            ),
            Turn(question=f"Where is the shape {about}?", answer=truth["position"]),
            Turn(question=f"Which shape is it {about}?", answer=truth["shape"]),
        ]
    return Drawing(images=tuple(images), turns=tuple(turns))


def draw_count(rng: Random, size: Size) -> Drawing:
    """One to six circles of one colour, spread over the nine positions."""
    ink = rng.choice(list(COLORS))
    ground = contrasting(rng, ink)
    count = rng.choice(COUNTS)
    image = Image.new("RGB", size, COLORS[ground])
    draw = ImageDraw.Draw(image)
    cell = min(size) / 3
    for position in rng.sample(range(9), count):
        radius = rng.uniform(0.30, 0.36) * cell
        x, y = _jittered(rng, position, size, 0.08 * cell)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLORS[ink])
    return Drawing(
        images=(image,),
        turns=(
            Turn(question="How many circles are there?", answer=str(count)),
            Turn(question="What color are the circles?", answer=ink, needs_color=True),
            Turn(
                question="What color is the background?",
                answer=ground,
                needs_color=True,
                needs_ground=True,
            ),
        ),
        cutout_ok=ink in INKS,
    )


def draw_dots(rng: Random, size: Size) -> Drawing:
    """Four dots of different colours at different positions, asked by colour or by position.

    Two dots are asked for by colour and two by position, so that no question gives away the answer
    to another one.
    """
    ground = rng.choice(["white", "black"])
    inks = rng.sample(INKS, 4)
    positions = rng.sample(range(9), 4)
    image = Image.new("RGB", size, COLORS[ground])
    draw = ImageDraw.Draw(image)
    cell = min(size) / 3
    radius = rng.uniform(0.30, 0.38) * cell
    for ink, position in zip(inks, positions, strict=True):
        x, y = _jittered(rng, position, size, 0.08 * cell)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLORS[ink])
    where = [
        Turn(question=f"Where is the {ink} dot?", answer=POSITIONS[position], needs_color=True)
        for ink, position in zip(inks[:2], positions[:2], strict=True)
    ]
    which = [
        Turn(
            question=f"What color is the dot at the {POSITIONS[position]}?",
            answer=ink,
            needs_color=True,
        )
        for ink, position in zip(inks[2:], positions[2:], strict=True)
    ]
    return Drawing(images=(image,), turns=(*where, *which), cutout_ok=True)


BARS = "ABCD"
HEIGHTS = range(1, 10)
LEFT, BOTTOM, TOP = 20, 20, 6


@lru_cache(maxsize=32)
def _axis(size: Size) -> Image.Image:
    """White page with the axis and its labels: the part that all charts of a size share."""
    width, height = size
    image = Image.new("RGB", size, COLORS["white"])
    draw = ImageDraw.Draw(image)
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
    return image


def draw_chart(rng: Random, size: Size) -> Drawing:
    """Four bars A to D, each of its own colour and a height of 1 to 9."""
    image = _axis(size).copy()
    draw = ImageDraw.Draw(image)
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
    return Drawing(images=(image,), turns=tuple(turns), grayscale_ok=True)


def draw_words(rng: Random, size: Size) -> Drawing:
    """One word in the upper and one in the lower half, both in one colour on another.

    Letters are 26 to 30 % of the shorter side high, about 45 pixels at 168: each letter is then
    larger than a 28-pixel cell.
    """
    width, height = size
    ink = rng.choice(list(COLORS))
    # Text is read by its edges: it needs a step in brightness, not only in hue.
    ground = contrasting(rng, ink, min_luma=75)
    image = Image.new("RGB", size, COLORS[ground])
    draw = ImageDraw.Draw(image)
    words = rng.sample(WORDS, 2)
    pixels = int(rng.uniform(0.26, 0.30) * min(size))
    for word, centre in zip(words, (0.27, 0.73), strict=True):
        x = width / 2 + rng.uniform(-0.04, 0.04) * width
        y = (centre + rng.uniform(-0.04, 0.04)) * height
        draw.text((x, y), word, fill=COLORS[ink], font=font(pixels), anchor="mm")
    return Drawing(
        images=(image,),
        turns=(
            Turn(question="What is the top word?", answer=words[0]),
            Turn(question="What is the bottom word?", answer=words[1]),
            Turn(question="What color are the letters?", answer=ink, needs_color=True),
        ),
        grayscale_ok=True,
        cutout_ok=ink in INKS,
    )
