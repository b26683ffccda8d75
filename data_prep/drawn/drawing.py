"""What every drawer returns: pictures, and turns whose answers can be seen on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from PIL import Image

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One question and its answer (one word, one number, or a position of two words)."""

    question: str
    answer: str
    #: The answer is a colour: lost on a greyscale file.
    needs_color: bool = False
    #: The answer is the background: lost where the background is made transparent.
    needs_ground: bool = False


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Pictures (RGB, sizes as asked for) and every turn that could be asked about them."""

    pictures: tuple[Image.Image, ...]
    turns: tuple[Turn, ...]
    #: Still answers its colourless turns on a greyscale file.
    grayscale_ok: bool = False
    #: Everything that is not the colour of the top left pixel may be cut out onto transparency.
    cutout_ok: bool = False


#: Draws one entry's pictures with the given (width, height) in pixels.
Drawer: TypeAlias = Callable[[Random, Size], Drawing]
