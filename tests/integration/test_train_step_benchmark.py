"""The benchmark of training steps runs, a contestant of every stack, on a tiny shape."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_step.py"


def test_quick_run(tmp_path):
    file = tmp_path / "result.json"
    names = "NeMo stock,pinned,newest,padded"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--only", names, "--json", file],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(file.read_text())["results"]
    assert "--newer-transformers" in results.pop("newest transformers")["error"]
    assert len(results) == 3
    assert all(result["seconds"] > 0 for result in results.values()), results
    assert "ratio_pinned_hf" not in done.stdout  # its numerator was not asked for
