"""Qwen2.5-VL through the trainer: started again on other ranks, and out into transformers."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

from dct_vl.evaluation.compare.runs import training_cost
from dct_vl.runs.derived import RunSettings
from dct_vl.runs.run_files import read_config, read_steps

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(train, tiny_model_25):
    """Six steps without a break, packed."""
    return train("qwen25", f"model.path={tiny_model_25}", "data.packing=true")


def test_losses_fall_and_windows_are_counted(whole):
    losses = whole.values("loss")
    assert losses[-1] < losses[0] - 0.2
    # cells of 28 pixels: few pictures here are larger than a window of 8 x 8 of them
    pairs = zip(whole.values("num_window_pairs"), whole.values("num_cell_pairs"), strict=True)
    assert all(0 < windows <= cells for windows, cells in pairs)


def test_compare_counts_what_training_counted(whole):
    """A step is three forward passes, less the gradients that the front end has none of."""
    config, steps = read_config(whole.folder), read_steps(whole.folder)
    trained = sum(step["tflops"] * 1e12 * step["seconds"] for step in steps)
    cost = training_cost(config, steps)
    assert cost.flops_per_sample is not None
    forward = cost.flops_per_sample * sum(step["num_samples"] for step in steps)
    counter = RunSettings(config).step_flops()
    once = 2 * counter.front_end_fixed + counter.front_end_weight
    cells = sum(step["num_cells"] for step in steps)
    assert trained == pytest.approx(3 * forward - once * cells, rel=1e-9)


def test_two_tensor_parallel_ranks_go_on_where_one_process_was(train, tiny_model_25, whole):
    run = train(
        "qwen25_resumed",
        f"model.path={tiny_model_25}",
        "data.packing=true",
        f"trainer.resume={whole.checkpoint(3)}",
        "trainer.tensor_parallel_size=2",
        "trainer.val_every=0",
        "trainer.save_every=-1",
        ranks=2,
    )
    assert run.ledger() == whole.ledger(4)
    assert run.values("loss", 4) == pytest.approx(whole.values("loss", 4), rel=1e-4)
    assert run.values("grad_norm", 4) == pytest.approx(whole.values("grad_norm", 4), rel=1e-3)


def test_the_checkpoint_says_the_same_in_transformers(whole, tmp_path):
    command = [
        sys.executable,
        "-m",
        "dct_vl",
        "export",
        str(whole.folder),
        str(tmp_path / "hf"),
    ]
    done = subprocess.run([*command, "--check", "4"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    difference = float(done.stdout.rpartition("largest difference of a logit: ")[2])
    assert difference < 1e-4
