"""A run on a grid of ranks, out into transformers, and the same numbers there."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.slow


def test_a_step_on_four_ranks_gives_the_same_logits_in_transformers(
    grid, grid_in_transformers, tmp_path
):
    """Tensor- and pipeline-parallel ranks write the checkpoint; one process exports it."""
    run, out = grid, grid_in_transformers
    report = json.loads((out / "dct_vl_export.json").read_text())
    assert report["is_plain"]
    assert report["step"] == 1
    assert report["dtype"] == "float32"
    assert 0 < report["max_abs_logit_diff"] < 1e-4
    card = (out / "README.md").read_text()
    loss = run.values("loss")[0]
    assert f"{loss:.4f} at step 1" in card
    assert "name: dct14" in card
    assert str(tmp_path.parent) not in card, "no paths of this machine"
