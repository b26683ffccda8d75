"""Parts of the benchmarks whose mistakes would look like results."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def load(name):
    """A script of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("last", "status", "said"),
    [
        ((104, 100, 103), 0, "fine"),
        ((104, 100, 107), 1, "too much"),
        ((104, 100), 1, "3 processes at step 10, 2 at 20: one has ended"),
    ],
)
def test_a_soak_passes_only_where_every_process_is_there_and_as_it_was(capsys, last, status, said):
    assert load("soak").judge({10: (100, 100, 100), 20: last}, 10, 0.05) == status
    assert said in capsys.readouterr().out


def test_a_process_that_has_ended_weighs_nothing():
    weigh = load("soak").weigh
    assert weigh(os.getpid())[0] > 0
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, its status not asked for
        assert weigh(process.pid) == ()
    assert weigh(process.pid) == ()


def test_shards_that_were_drawn_otherwise_are_not_taken_for_these(tmp_path):
    write_shards = load("train_step_shards").write_shards
    sizes = {"num_samples": 20, "patches": 16, "text": 40, "num_workers": 1}
    shards = write_shards(tmp_path, **sizes)
    assert write_shards(tmp_path, **sizes) == shards
    with pytest.raises(ValueError, match=r"drawn with .*'patches': 16.* wants .*'patches': 64"):
        write_shards(tmp_path, **{**sizes, "patches": 64})
    assert json.loads((tmp_path / "drawn.json").read_text())["patches"] == 16
