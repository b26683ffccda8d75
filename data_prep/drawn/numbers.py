"""Pages of small numbers in coloured frames, all of them read in one answer.

How fine does a tokenizer see? Digits of several heights lie in one collection, each height in a
source of its own: the large ones teach a model to read, the small ones tell tokenizers apart. At
half resolution digits of 6 or 7 pixels are 3 pixels high.

The answer names each frame's colour before its number, so that a model finds a number by what is
around it. Names of places would do for a pretrained model only: Qwen2-VL has no absolute position
embedding, and learning where "top left" is takes one that starts from nothing longer than learning
to read.
"""

from __future__ import annotations

from random import Random

from PIL import Image, ImageDraw

from data_prep.drawn.drawing import Drawer, Drawing, Size, Turn
from data_prep.drawn.palette import font

#: Pixels from the foot of a digit to its top, largest first.
DIGIT_HEIGHTS = (28, 20, 14, 10, 7, 6)
#: A digit of Pillow's own font is about 0.7 of the font's size high.
FONT_SIZES = {28: 40, 20: 28, 14: 20, 10: 14, 7: 10, 6: 8}
#: Side of the square that a frame stands in, and width of its lines, in pixels.
TILE, LINE = 56, 3
#: Colours of the frames, in the order of the answer. Only the frame is coloured: the inside is the
#: page. On filled tiles a model without pretraining learnt the colours and no digit, on framed ones
#: of the same size all digits within 400 steps of 32.
TILES = {
    "red": (190, 70, 70),
    "green": (70, 165, 70),
    "blue": (80, 85, 200),
    "yellow": (170, 160, 45),
    "purple": (150, 70, 175),
    "cyan": (60, 160, 170),
    "orange": (205, 125, 45),
    "pink": (205, 120, 165),
}
#: Numbers of a page, as far as there are places. Pages with one number teach what digits look like.
COUNTS = (1, 2, 4, 8)
QUESTION = "Read the numbers by color."
#: Darkest and lightest level of a page's colour, of black ink's and of white ink's. The page is
#: grey, close to the mean that Qwen2-VL subtracts, for the same reason.
PAGE_LEVELS = (110, 120)
INK_LEVELS = ((0, 20), (235, 255))


def numbers_drawer(digit_height: int) -> Drawer:
    """A drawer of pages with one to eight two-digit numbers, each in a frame of its own colour.

    Frames stand anywhere on the grid of 56 × 56 pixels. On a quarter of the pages every number is
    in the middle of its frame; on the others it is farther off the more the page was given of it,
    up to anywhere.

    digit_height: one of DIGIT_HEIGHTS.
    """
    face = font(FONT_SIZES[digit_height])

    def draw(rng: Random, size: Size) -> Drawing:
        columns, rows = size[0] // TILE, size[1] // TILE
        picture = Image.new("RGB", size, _color(rng, PAGE_LEVELS))
        pen = ImageDraw.Draw(picture)
        ink_levels = rng.choice(INK_LEVELS)
        spread = max(0.0, rng.uniform(-1 / 3, 1))
        count = min(rng.choice(COUNTS), columns * rows)
        chosen = set(rng.sample(list(TILES), count))
        places = rng.sample(range(columns * rows), count)
        words = []
        for name, place in zip([n for n in TILES if n in chosen], places, strict=True):
            number = f"{rng.randrange(100):02d}"
            left, top = place % columns * TILE, place // columns * TILE
            corners = (left, top, left + TILE - 1, top + TILE - 1)
            pen.rectangle(corners, outline=TILES[name], width=LINE)
            box = pen.textbbox((0, 0), number, font=face)
            # the box's own offset is taken off, so that the ink itself is what is placed
            x = left - box[0] + _shift(rng, TILE - (box[2] - box[0]), spread)
            y = top - box[1] + _shift(rng, TILE - (box[3] - box[1]), spread)
            pen.text((round(x), round(y)), number, fill=_color(rng, ink_levels), font=face)
            words.append(f"{name}:{number}")
        return Drawing(
            pictures=(picture,),
            turns=(Turn(question=QUESTION, answer=" ".join(words), needs_color=True),),
        )

    return draw


def _shift(rng: Random, room: float, spread: float) -> float:
    """The middle of `room`, and up to `spread` of the way from it to a pixel inside the frame."""
    return room / 2 + spread * rng.uniform(-1, 1) * max(0.0, room / 2 - LINE - 1)


def _color(rng: Random, levels: tuple[int, int]) -> tuple[int, int, int]:
    return rng.randint(*levels), rng.randint(*levels), rng.randint(*levels)
