"""What a run of Qwen2.5-VL cost, by its log."""

from __future__ import annotations

from pathlib import Path

import pytest
from compared_runs import STEP, write_run

from dct_vl.evaluation.compare.runs import training_cost
from dct_vl.runs.run_files import read_config, read_steps

WINDOWED = {**STEP, "num_window_pairs": 3_000}


def flops_of(folder: Path) -> float:
    found = training_cost(read_config(folder), read_steps(folder)).flops_per_sample
    assert found is not None
    return found


def test_attention_in_windows_is_counted(tiny_model_25, tmp_path):
    """Of its two layers, of width 32, one sees windows."""
    paths = {"data": tmp_path, "model": tiny_model_25}
    with_windows = flops_of(write_run(tmp_path / "with", **paths, step=WINDOWED))
    without = flops_of(write_run(tmp_path / "without", **paths))
    in_windows = 4 * 32 * WINDOWED["num_window_pairs"] / STEP["num_samples"]
    assert with_windows - without == pytest.approx(in_windows)


def test_a_log_that_counted_no_windows_says_nothing(tiny_model_25, tmp_path):
    earlier = {k: v for k, v in STEP.items() if k != "num_window_pairs"}
    folder = write_run(tmp_path / "run", data=tmp_path, model=tiny_model_25, step=earlier)
    assert training_cost(read_config(folder), read_steps(folder)).flops_per_sample is None
