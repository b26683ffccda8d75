"""The benchmark of answers runs on a tiny shape, and says what it could not do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "generate.py"


def test_the_contestants_that_are_there(tmp_path):
    file = tmp_path / "result.json"
    names = "transformers;vLLM;documents, dct28_420"
    command = [sys.executable, SCRIPT, "--quick", "--json", file, "--only", names]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {entry["name"]: entry for entry in json.loads(file.read_text())["results"]}
    assert "--vllm-python" in found["captions, vLLM"]["error"]
    assert found["captions, transformers"]["value"] > 0
    page = found["documents, dct28_420"]
    assert page["prompt_tokens"] < 120
    assert page["tokens_s"] == pytest.approx(4 * page["value"])
    assert page["step_ms"] > 0
