"""Fine hatching in coloured frames: which way do its lines run?

The other half of fine charts beside small print. Each period is a source of its own. At half
resolution a period of 3 pixels is beyond the Nyquist limit of two samples a period, 4 lies on it.
One patch is enough to tell the direction, so that this is learnt before digits are.
"""

from __future__ import annotations

from random import Random

from PIL import Image, ImageDraw

from data_prep.drawn.drawing import Drawer
from data_prep.drawn.fine import DIRECTIONS
from data_prep.drawn.frames import LINE, TILE, Color, Content, frames_drawer

#: Pixels from one line to the next along a row or a column, largest first.
PERIODS = (8, 6, 4, 3)
QUESTION = "Which way do the lines run?"
#: Pixels between the frame and the hatching.
_MARGIN = LINE + 2


def lines_drawer(period: int, *, growing: bool = False) -> Drawer:
    """A drawer of pages with lines `period` pixels apart in every frame, in one of four directions.

    period: one of PERIODS.
    growing: see `frames_drawer`.
    """

    def new_page(_: Random) -> Content:
        return hatch

    def hatch(rng: Random, picture: Image.Image, corner: tuple[int, int], ink: Color) -> str:
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
        ImageDraw.Draw(picture).point(spots, fill=ink)
        return direction

    return frames_drawer(QUESTION, new_page, growing=growing)
