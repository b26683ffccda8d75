"""`dct-vl layout-check` on two CPU ranks, from nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def test_layouts_pass(tmp_path):
    table = tmp_path / "table.json"
    words = ["--ranks", "2", "--only", "tp2,cp2", "--variants", "padded", "--steps", "2"]
    where = ["--work-dir", str(tmp_path / "work"), "--json", str(table)]
    done = subprocess.run(
        [sys.executable, "-m", "dct_vl", "layout-check", *words, *where],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    lines = {line.split()[2]: line for line in done.stdout.splitlines() if " padded " in line}
    assert lines["single"].startswith("PASS")
    assert lines["tp2"].startswith("PASS")
    assert lines["cp2"].startswith("PASS")
    found = {entry["layout"]: entry for entry in json.loads(table.read_text())["layouts"]}
    assert found["tp2"]["loss_difference"] < 1e-5
    # a loss counted once a context-parallel rank would be twice as large
    assert found["cp2"]["loss_difference"] < 1e-5
    assert found["cp2"]["norm_difference"] < 1e-4
