"""A busy device does not change what a run starts from."""

from __future__ import annotations

import pytest
from test_layer_spec_checkpoints import SAME_KERNELS


def test_the_weights_trained_are_the_ones_loaded(runs):
    straight, busy = runs.figures("local"), runs.figures("busy")
    assert "DDP waits" in (runs.background.logs / "busy.log").read_text()
    assert sorted(busy.losses) == [1, 2]
    for step in (1, 2):
        assert busy.losses[step] == pytest.approx(straight.losses[step], rel=SAME_KERNELS)
        assert busy.norms[step] == pytest.approx(straight.norms[step], rel=1e2 * SAME_KERNELS)
