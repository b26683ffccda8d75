"""A run on a grid of ranks, out into transformers, and the same numbers there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def test_a_step_on_four_ranks_gives_the_same_logits_in_transformers(train, tmp_path):
    """Tensor- and pipeline-parallel ranks write the checkpoint; one process exports it."""
    run = train(
        "grid",
        "tokenizer=dct14",
        "trainer.tensor_parallel_size=2",
        "trainer.pipeline_parallel_size=2",
        "trainer.stop_at_step=1",
        "trainer.val_every=0",
        "data.num_workers=1",
        ranks=4,
    )
    out = tmp_path / "hf"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "evaluation", "export", str(run.folder), str(out)),
            *("--check", "6"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
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
