"""Pages of small numbers, all of them read in one answer: how fine does a tokenizer see?

Digits of several heights lie in one collection, each height in a source of its own: the large ones
teach a model where to look, the small ones tell tokenizers apart. At half resolution digits of 6
or 7 pixels are 3 pixels high.
"""

from __future__ import annotations

import string
from random import Random

from PIL import Image, ImageDraw

from data_prep.drawn.drawing import Drawer, Drawing, Size, Turn
from data_prep.drawn.palette import font

#: Pixels from the foot of a digit to its top, largest first.
DIGIT_HEIGHTS = (28, 20, 14, 10, 7, 6)
#: A digit of Pillow's own font is about 0.7 of the font's size high.
FONT_SIZES = {28: 40, 20: 28, 14: 20, 10: 14, 7: 10, 6: 8}
#: Side of the square that one number has to itself, in pixels.
FIELD = 56
#: Names of the fields, row by row. The answer says each name before its number.
NAMES = string.ascii_letters
QUESTION = "Read the numbers row by row, fields a, b, c and so on."
#: A page has numbers in all of its fields, or in this share of them. Pages with one number teach
#: what digits look like and where a field is; a model that starts from nothing learns neither from
#: full pages alone, where every digit is one of many that an answer could be about.
SHARES = (1.0, 0.5, 0.25, 0.125, 0.0)
#: Darkest and lightest level of a page's colour, of a dark ink's and of a light one's. Pages are
#: grey, close to the mean that Qwen2-VL subtracts: on white ones a model without pretraining sees
#: the page and hardly the digits, and takes many times as long to learn anything.
PAGE_LEVELS = (100, 145)
INK_LEVELS = ((0, 30), (225, 255))


def numbers_drawer(digit_height: int) -> Drawer:
    """A drawer of pages with two-digit numbers in some or all fields of 56 × 56 pixels.

    A quarter of the pages has every number in the middle of its field, the others have it farther
    off the more the page was given of it, up to anywhere. Every page has a colour of its own, and
    every number an ink of its own, all dark or all light.

    digit_height: one of DIGIT_HEIGHTS.
    """
    face = font(FONT_SIZES[digit_height])

    def draw(rng: Random, size: Size) -> Drawing:
        width, height = size
        num_fields = (width // FIELD) * (height // FIELD)
        if num_fields > len(NAMES):
            raise ValueError(
                f"a page of {width}×{height} pixels has {num_fields} fields of {FIELD} pixels; at "
                f"most {len(NAMES)} have a name: draw smaller pages"
            )
        picture = Image.new("RGB", size, _color(rng, PAGE_LEVELS))
        pen = ImageDraw.Draw(picture)
        ink_levels = rng.choice(INK_LEVELS)
        spread = max(0.0, rng.uniform(-1 / 3, 1))
        count = max(1, round(rng.choice(SHARES) * num_fields))
        words = []
        for field in sorted(rng.sample(range(num_fields), count)):
            number = f"{rng.randrange(100):02d}"
            row, column = divmod(field, width // FIELD)
            box = pen.textbbox((0, 0), number, font=face)
            # the box's own offset is taken off, so that the ink itself is what is placed
            x = column * FIELD - box[0] + _place(rng, FIELD - (box[2] - box[0]), spread)
            y = row * FIELD - box[1] + _place(rng, FIELD - (box[3] - box[1]), spread)
            pen.text((round(x), round(y)), number, fill=_color(rng, ink_levels), font=face)
            words.append(NAMES[field] + number)
        answer = " ".join(words)
        return Drawing(
            pictures=(picture,),
            turns=(Turn(question=QUESTION, answer=answer),),
            grayscale_ok=True,
        )

    return draw


def _place(rng: Random, room: float, spread: float) -> float:
    """0 to `room`, one pixel off both ends: the middle, and up to `spread` of the way from it."""
    return room / 2 + spread * rng.uniform(-1, 1) * max(0.0, room / 2 - 1)


def _color(rng: Random, levels: tuple[int, int]) -> tuple[int, int, int]:
    return rng.randint(*levels), rng.randint(*levels), rng.randint(*levels)
