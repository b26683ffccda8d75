"""Pages of coloured frames with something small in each, all of it named in one answer.

How fine does a tokenizer see? The answer names each frame's colour before what is in it, so that a
model finds a frame by what is around it. Names of places would do for a pretrained model only:
Qwen2-VL has no absolute position embedding, and learning where "top left" is takes one that starts
from nothing longer than learning to read.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TypeAlias

from PIL import Image, ImageDraw

from data_prep.drawn.drawing import Drawer, Drawing, Size, Turn

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
#: Frames of a page, as far as there are places.
COUNTS = (1, 2, 4, 8)
#: Darkest and lightest level of a page's colour, of black ink's and of white ink's. The page is
#: grey, close to the mean that Qwen2-VL subtracts, for the same reason as the empty insides.
PAGE_LEVELS = (110, 120)
INK_LEVELS = ((0, 20), (235, 255))

Color: TypeAlias = tuple[int, int, int]
#: (rng, picture, (left, top) of the tile, ink) → the word that names what it has drawn there.
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
        picture = Image.new("RGB", size, _color(rng, PAGE_LEVELS))
        pen = ImageDraw.Draw(picture)
        ink_levels = rng.choice(INK_LEVELS)
        content = new_page(rng)
        count = min(rng.choice(COUNTS), columns * rows)
        chosen = set(rng.sample(list(TILES), count))
        places = rng.sample(range(columns * rows), count)
        words = []
        for name, place in zip([n for n in TILES if n in chosen], places, strict=True):
            left, top = place % columns * TILE, place // columns * TILE
            corners = (left, top, left + TILE - 1, top + TILE - 1)
            pen.rectangle(corners, outline=TILES[name], width=LINE)
            words.append(f"{name}:{content(rng, picture, (left, top), _color(rng, ink_levels))}")
        return Drawing(
            pictures=(picture,),
            turns=(Turn(question=question, answer=" ".join(words), needs_color=True),),
        )

    return draw


def _color(rng: Random, levels: tuple[int, int]) -> Color:
    return rng.randint(*levels), rng.randint(*levels), rng.randint(*levels)
