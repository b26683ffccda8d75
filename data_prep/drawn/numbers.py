"""Small numbers in coloured frames.

Digits of several heights lie in one collection, each height in a source of its own: the large ones
teach a model to read, the small ones tell tokenizers apart. At half resolution digits of 6 or 7
pixels are 3 pixels high.
"""

from __future__ import annotations

from random import Random

from PIL import Image, ImageDraw

from data_prep.drawn.drawing import Drawer
from data_prep.drawn.frames import LINE, TILE, Color, Content, frames_drawer
from data_prep.drawn.palette import font

#: Pixels from the foot of a digit to its top, largest first.
DIGIT_HEIGHTS = (28, 20, 14, 10, 7, 6)
#: A digit of Pillow's own font is about 0.7 of the font's size high.
FONT_SIZES = {28: 40, 20: 28, 14: 20, 10: 14, 7: 10, 6: 8}
QUESTION = "Read the numbers by color."


def numbers_drawer(digit_height: int, *, growing: bool = False) -> Drawer:
    """A drawer of pages with a two-digit number in every frame.

    On a quarter of the pages every number is in the middle of its frame; on the others it is
    farther off the more the page was given of it, up to anywhere.

    digit_height: one of DIGIT_HEIGHTS.
    growing: see `frames_drawer`.
    """
    face = font(FONT_SIZES[digit_height])

    def new_page(rng: Random) -> Content:
        spread = max(0.0, rng.uniform(-1 / 3, 1))

        def write(rng: Random, picture: Image.Image, corner: tuple[int, int], ink: Color) -> str:
            number = f"{rng.randrange(100):02d}"
            pen = ImageDraw.Draw(picture)
            box = pen.textbbox((0, 0), number, font=face)
            # the box's own offset is taken off, so that the ink itself is what is placed
            x = corner[0] - box[0] + _shift(rng, TILE - (box[2] - box[0]), spread)
            y = corner[1] - box[1] + _shift(rng, TILE - (box[3] - box[1]), spread)
            pen.text((round(x), round(y)), number, fill=ink, font=face)
            return number

        return write

    return frames_drawer(QUESTION, new_page, growing=growing)


def _shift(rng: Random, room: float, spread: float) -> float:
    """The middle of `room`, and up to `spread` of the way from it to a pixel inside the frame."""
    return room / 2 + spread * rng.uniform(-1, 1) * max(0.0, room / 2 - LINE - 1)
