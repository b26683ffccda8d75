"""A busy device does not change what a run starts from."""

from __future__ import annotations

import pytest


def test_the_weights_trained_are_the_ones_loaded(runs):
    straight, busy = runs.figures("local").losses, runs.figures("busy").losses
    assert sorted(busy) == [1, 2]
    assert busy[1] == pytest.approx(straight[1], rel=1e-6)
    assert busy[2] == pytest.approx(straight[2], rel=1e-4)
