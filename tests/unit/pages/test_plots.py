"""Plots of the statistics page."""

import pytest

from dct_vl.pages.bars import bar_width


@pytest.mark.parametrize(
    ("places", "width"),
    [([1.0, 2.0, 4.0], 0.8), ([3.0], 0.8), ([0.75, 1.0, 1.0001, 1.75], 0.01)],
)
def test_bars_are_apart_and_visible(places, width):
    assert bar_width(places) == pytest.approx(width)
