"""The benchmark of training steps runs, a contestant of every stack, on a tiny shape."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_step.py"


def run(*arguments: str, file: Path) -> tuple[str, dict]:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--json", file, *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())


def test_a_contestant_of_every_stack(tmp_path):
    names = "packed pixel te,newest,NeMo stock,pinned,padded"
    output, entry = run("--only", names, file=tmp_path / "result.json")
    results = entry["results"]
    # what cannot run says why, and the others run all the same
    assert "--newer-transformers" in results.pop("newest transformers")["error"]
    assert "needs Transformer Engine" in results.pop("packed pixel te")["error"]
    assert "Traceback" in output
    assert len(results) == 3
    assert all(result["seconds"] > 0 for result in results.values()), results
    assert "ratio_pinned_hf" not in output  # its numerator was not asked for


@pytest.mark.parametrize("end", ["os._exit(139)", "time.sleep(60)"])
def test_a_result_outlives_a_bad_end_of_its_process(monkeypatch, end):
    """Libraries crash or hang while they shut down; what was measured before is kept."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import train_step

    code = f"import os, sys, time; open(sys.argv[2], 'w').write('{{\"seconds\": 1.5}}'); {end}"
    options = argparse.Namespace(tail=0)
    case = {"wants_te": False}
    monkeypatch.setattr(
        train_step, "command", lambda *given: [sys.executable, "-c", code, *given[2]]
    )
    assert train_step.run(case, options, limit=5) == {"seconds": 1.5}


def test_fed_from_shards(tmp_path):
    output, entry = run("--loader", "1", file=tmp_path / "result.json")
    result = entry["results"]["packed pixel, shards"]
    assert "error" not in result, output
    assert 0 < entry["figures"]["data_wait_share"] < 1
    # a little below what was asked for: pictures of whole tokens within the area
    assert 10 <= result["visual_per_sample"] <= 16
    assert 25 <= result["text_per_sample"] <= 40


def test_a_name_that_nobody_has():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--only", "jax"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "known: packed pixel" in done.stderr
