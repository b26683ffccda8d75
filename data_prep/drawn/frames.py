"""Draw coloured frames with a small number or fine lines in each, all named in one answer.

How fine does a tokenizer see? The answer names each frame's colour before what is in it, so that a
model finds a frame by what is around it. Names of positions would do for a pretrained model only:
Qwen2-VL has no absolute position embedding, and learning where "top left" is takes one that starts
from nothing longer than learning to read.

Digits of several heights, and lines of several periods, lie in one collection, each in a source of
its own: the large ones teach a model to read, the small ones tell tokenizers apart. At half
resolution digits of 6 or 7 pixels are 3 pixels high; a period of 3 pixels is beyond the Nyquist
limit of two samples per period, 4 lies on it. One patch is enough to tell a line's direction:
this is learnt before digits are.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TypeAlias

from PIL import Image, ImageDraw

from data_prep.drawn.drawing import Color, Drawer, Drawing, Size, Turn, font
from data_prep.drawn.fine import DIRECTIONS

#: Side of the square that a frame stands in, and width of its lines, in pixels.
TILE, LINE = 56, 3
#: Colours of the frames, in the order of the answer. Only the frame is coloured: the inside is the
#: page. On filled tiles a model without pretraining learnt the colours and no digit.
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
#: Frames of a page, as far as there are tiles.
COUNTS = (1, 2, 4, 8)
#: Darkest and lightest level of a page's colour, of black ink's and of white ink's. The page is
#: grey, close to the mean that Qwen2-VL subtracts, for the same reason as the empty insides.
PAGE_LEVELS = (110, 120)
INK_LEVELS = ((0, 20), (235, 255))

#: (rng, image, (left, top) of the tile, ink) → the word that names what it has drawn there.
Content: TypeAlias = Callable[[Random, Image.Image, tuple[int, int], Color], str]
#: Called once a page, for what the tiles of one page have in common.
NewPage: TypeAlias = Callable[[Random], Content]


def frames_drawer(question: str, new_page: NewPage, *, growing: bool = False) -> Drawer:
    """A drawer of pages with one to eight frames, each of a colour of its own, on a grid of tiles.

    question: asked about every page.
    new_page: gives what draws into the frames of one page.
    growing: pages from a single tile up to the asked size, small ones more often: a page of n
        tiles a side has a chance in proportion to 1/n. On them a model without pretraining learns
        to read where there is nothing to find, and to find where there is little to choose from.
    """

    def draw(rng: Random, size: Size) -> Drawing:
        if growing:
            sides = range(1, min(size) // TILE + 1)
            side = TILE * rng.choices(sides, weights=[1 / n for n in sides])[0]
            size = (side, side)
        columns, rows = size[0] // TILE, size[1] // TILE
        image = Image.new("RGB", size, _color(rng, PAGE_LEVELS))
        pen = ImageDraw.Draw(image)
        ink_levels = rng.choice(INK_LEVELS)
        content = new_page(rng)
        count = min(rng.choice(COUNTS), columns * rows)
        chosen = set(rng.sample(list(TILES), count))
        positions = rng.sample(range(columns * rows), count)
        words = []
        for name, index in zip([n for n in TILES if n in chosen], positions, strict=True):
            left, top = index % columns * TILE, index // columns * TILE
            corners = (left, top, left + TILE - 1, top + TILE - 1)
            pen.rectangle(corners, outline=TILES[name], width=LINE)
            words.append(f"{name}:{content(rng, image, (left, top), _color(rng, ink_levels))}")
        return Drawing(
            images=(image,),
            turns=(Turn(question=question, answer=" ".join(words), needs_color=True),),
        )

    return draw


def _color(rng: Random, levels: tuple[int, int]) -> Color:
    return rng.randint(*levels), rng.randint(*levels), rng.randint(*levels)


#: Pixels from the foot of a digit to its top, largest first.
DIGIT_HEIGHTS = (28, 20, 14, 10, 7, 6)
#: A digit of Pillow's own font is about 0.7 of the font's size high.
FONT_SIZES = {28: 40, 20: 28, 14: 20, 10: 14, 7: 10, 6: 8}


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

        def write(rng: Random, image: Image.Image, corner: tuple[int, int], ink: Color) -> str:
            number = f"{rng.randrange(100):02d}"
            pen = ImageDraw.Draw(image)
            box = pen.textbbox((0, 0), number, font=face)
            # the box's own offset is taken off, so that the ink itself is what is placed
            x = corner[0] - box[0] + _shift(rng, TILE - (box[2] - box[0]), spread)
            y = corner[1] - box[1] + _shift(rng, TILE - (box[3] - box[1]), spread)
            pen.text((round(x), round(y)), number, fill=ink, font=face)
            return number

        return write

    return frames_drawer("Read the numbers by color.", new_page, growing=growing)


def _shift(rng: Random, room: float, spread: float) -> float:
    """The middle of `room`, and up to `spread` of the way from it to a pixel inside the frame."""
    return room / 2 + spread * rng.uniform(-1, 1) * max(0.0, room / 2 - LINE - 1)


#: Pixels from one line to the next along a row or a column, largest first.
PERIODS = (8, 6, 4, 3)
#: Pixels between the frame and the hatching.
_MARGIN = LINE + 2


def lines_drawer(period: int, *, growing: bool = False) -> Drawer:
    """A drawer of pages with lines `period` pixels apart in every frame, in one of four directions.

    period: one of PERIODS.
    growing: see `frames_drawer`.
    """

    def new_page(_: Random) -> Content:
        return hatch

    def hatch(rng: Random, image: Image.Image, corner: tuple[int, int], ink: Color) -> str:
        direction = rng.choice(list(DIRECTIONS))
        dx, dy = DIRECTIONS[direction]
        phase = rng.randrange(period)
        inside = range(_MARGIN, TILE - _MARGIN)
        # half of the period is ink, at least a pixel
        spots = [
            (corner[0] + x, corner[1] + y)
            for y in inside
            for x in inside
            if (x * dx + y * dy + phase) % period < period // 2
        ]
        ImageDraw.Draw(image).point(spots, fill=ink)
        return direction

    return frames_drawer("Which way do the lines run?", new_page, growing=growing)
