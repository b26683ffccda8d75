"""Pictures of filled shapes: one big shape, several circles, dots in places, and pairs."""

from __future__ import annotations

from random import Random

from PIL import Image, ImageDraw

from data_prep.drawn.drawing import Drawing, Size, Turn
from data_prep.drawn.palette import COLORS, INKS, POSITIONS, SHAPES, cell_centre, contrasting

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


def _shape_picture(rng: Random, size: Size) -> tuple[Image.Image, dict[str, str]]:
    ink = rng.choice(list(COLORS))
    ground = contrasting(rng, ink)
    shape = rng.choice(SHAPES)
    position = rng.randrange(9)
    picture = Image.new("RGB", size, COLORS[ground])
    cell = min(size) / 3
    radius = rng.uniform(0.38, 0.45) * cell
    x, y = _jittered(rng, position, size, 0.04 * cell)
    _draw_shape(ImageDraw.Draw(picture), shape, x, y, radius, ink, ground)
    truth = {"ink": ink, "ground": ground, "shape": shape, "position": POSITIONS[position]}
    return picture, truth


def draw_scene(rng: Random, size: Size) -> Drawing:
    """One big shape in one of nine places: its colour, kind and place, and the background."""
    picture, truth = _shape_picture(rng, size)
    return Drawing(
        pictures=(picture,),
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
    """Two pictures of one shape each; every question says which picture it means."""
    pictures, turns = [], []
    for ordinal in ("first", "second"):
        picture, truth = _shape_picture(rng, size)
        pictures.append(picture)
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
    return Drawing(pictures=tuple(pictures), turns=tuple(turns))


def draw_count(rng: Random, size: Size) -> Drawing:
    """One to six circles of one colour, spread over the nine places."""
    ink = rng.choice(list(COLORS))
    ground = contrasting(rng, ink)
    count = rng.choice(COUNTS)
    picture = Image.new("RGB", size, COLORS[ground])
    draw = ImageDraw.Draw(picture)
    cell = min(size) / 3
    for position in rng.sample(range(9), count):
        radius = rng.uniform(0.30, 0.36) * cell
        x, y = _jittered(rng, position, size, 0.08 * cell)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLORS[ink])
    return Drawing(
        pictures=(picture,),
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
    """Four dots of different colours in different places, asked by colour or by place.

    Two dots are asked for by colour and two by place, so that no question gives away the answer
    to another one.
    """
    ground = rng.choice(["white", "black"])
    inks = rng.sample(INKS, 4)
    positions = rng.sample(range(9), 4)
    picture = Image.new("RGB", size, COLORS[ground])
    draw = ImageDraw.Draw(picture)
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
    return Drawing(pictures=(picture,), turns=(*where, *which), cutout_ok=True)
