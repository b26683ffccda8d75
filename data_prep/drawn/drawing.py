"""What every drawer returns, and the closed answer sets (colours, positions, shapes, words)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import TypeAlias

from PIL import Image, ImageFont

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
    """Images (RGB, sizes as asked for) and every turn that could be asked about them."""

    images: tuple[Image.Image, ...]
    turns: tuple[Turn, ...]
    #: Still answers its colourless turns on a greyscale file.
    grayscale_ok: bool = False
    #: Everything that is not the colour of the top left pixel may be cut out onto transparency.
    cutout_ok: bool = False


#: Draws one entry's images with the given (width, height) in pixels.
Drawer: TypeAlias = Callable[[Random, Size], Drawing]


Color = tuple[int, int, int]

#: name → sRGB. Far apart from each other, so that JPEG and a half-resolution view keep them so.
COLORS: dict[str, Color] = {
    "red": (220, 25, 30),
    "green": (25, 150, 50),
    "blue": (30, 70, 225),
    "yellow": (250, 220, 30),
    "purple": (140, 40, 165),
    "orange": (250, 130, 20),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
#: Visible on a white page, on a black one and on most colours.
INKS: tuple[str, ...] = ("red", "green", "blue", "yellow", "purple", "orange")

#: Row by row from the top left of a 3 × 3 division of the image.
POSITIONS: tuple[str, ...] = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "diamond", "cross", "ring")

#: Three to five letters, each with a silhouette of its own.
WORDS: tuple[str, ...] = (
    "cat", "dog", "sun", "map", "key", "hat", "bus", "pen",
    "fox", "jar", "owl", "zip", "tree", "fish", "moon", "book",
    "lamp", "ship", "bell", "milk", "apple", "chair", "bread", "tiger",
)  # fmt: skip

#: Least Euclidean distance of two sRGB colours drawn side by side: above red–orange (106) and
#: purple–blue (130), the two pairs that JPEG's chroma subsampling blurs into one another.
MIN_DISTANCE = 135.0


def distance(a: str, b: str) -> float:
    """Euclidean distance of two named colours in sRGB, 0 … 441."""
    return sum((x - y) ** 2 for x, y in zip(COLORS[a], COLORS[b], strict=True)) ** 0.5


def luma(name: str) -> float:
    """Brightness of a named colour, 0 … 255 (ITU-R BT.601 weights, as JPEG uses)."""
    red, green, blue = COLORS[name]
    return 0.299 * red + 0.587 * green + 0.114 * blue


def contrasting(rng: Random, name: str, *, min_luma: float = 0.0) -> str:
    """A colour that stands out from ``name``, by ``min_luma`` in brightness where text needs it."""
    return rng.choice(
        [
            other
            for other in COLORS
            if distance(name, other) >= MIN_DISTANCE and abs(luma(name) - luma(other)) >= min_luma
        ]
    )


def cell_centre(position: int, size: tuple[int, int]) -> tuple[float, float]:
    """Centre (x, y) in pixels of one of the nine positions on a (width, height) image."""
    row, column = divmod(position, 3)
    return (column + 0.5) * size[0] / 3, (row + 0.5) * size[1] / 3


@lru_cache(maxsize=64)
def font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own scalable font: the same glyphs wherever the same Pillow is."""
    return ImageFont.load_default(pixels)
