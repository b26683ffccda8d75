"""The sample configurations of experiments/scale: they compose, and their heads tell the truth."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from dct_vl.runs.config.compose import CONFIG_DIR
from dct_vl.verbs.estimate import estimate_command

FILES = sorted((CONFIG_DIR / "scale").glob("*.yaml"))


def test_all_are_there():
    models = ("qwen2vl_2b", "qwen2vl_7b", "qwen25vl_3b")
    wanted = {f"{model}_{gpus}gpu" for model in models for gpus in (1, 8, 64)}
    assert {path.stem for path in FILES} == wanted


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_head_says_what_the_estimator_says(path: Path):
    head = path.read_text()
    command = re.search(r"\(dct-vl estimate (.*)\):", head)
    assert command, head
    arguments = command[1].split()
    gpus = path.stem.rpartition("_")[2].removesuffix("gpu")
    assert arguments[:3] == [f"experiment=scale/{path.stem}", "--gpus", gpus]

    app = Typer()
    app.command()(estimate_command)
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    found = json.loads(done.output)
    said = re.search(r"(\d+) GiB a GPU, (\d+) where .*; ([\d.]+) s a step at MFU 0.4", head)
    assert said, head
    assert found["typical_peak_gib"] == pytest.approx(float(said[1]), abs=0.6)
    assert found["fullest_peak_gib"] == pytest.approx(float(said[2]), abs=0.6)
    assert found["step_seconds"] == pytest.approx(float(said[3]), abs=0.006)
    assert found["fullest_peak_gib"] < 130  # of 139.8
