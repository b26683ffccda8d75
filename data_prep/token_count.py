"""How many visual tokens an image costs, by arithmetic on its size alone."""

from data_prep.smart_resize import smart_resize

#: Pixels that one visual token covers on each side, by tokenizer preset. Presets whose count does
#: not follow from the size alone (adaptive cells, cropped spectra) are not listed.
TOKEN_SIDES = {
    "pixel": 28,
    "dct14": 28,
    "dct14_k10": 28,
    "pixel28": 56,
    "dct28_lp": 56,
    "dct28_420": 56,
    "dct21_420": 42,
}


def count_tokens(height: int, width: int, *, side: int, min_pixels: int, max_pixels: int) -> int:
    """Visual tokens of a still image of that size; bounds in pixels after resizing."""
    new_height, new_width = smart_resize(
        height, width, min_pixels=min_pixels, max_pixels=max_pixels, factor=side
    )
    return (new_height // side) * (new_width // side)
