"""What the scripts refuse before they do anything."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    # a Python that does nothing, so that a script that goes on is noticed at once
    environment = {**os.environ, "DCT_VL_PYTHON": "/bin/true", **variables}
    command = ["bash", str(ROOT / "launch" / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_the_quickstart_leaves_other_folders_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    done = run("quickstart.sh", OUTPUT_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "holds something else" in done.stderr
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_the_quickstart_replaces_its_own_folder(tmp_path):
    (tmp_path / ".quickstart").touch()
    (tmp_path / "old").touch()
    done = run("quickstart.sh", OUTPUT_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "old").exists()


def test_the_quickstart_wants_enough_steps(tmp_path):
    done = run("quickstart.sh", OUTPUT_DIR=str(tmp_path / "new"), STEPS="39")
    assert (done.returncode, "expected at least 40" in done.stderr) == (2, True)


@pytest.mark.parametrize("steps", ["many", "4e2", "-40", "0400"])
def test_the_quickstart_wants_a_number_of_steps(tmp_path, steps):
    done = run("quickstart.sh", OUTPUT_DIR=str(tmp_path / "new"), STEPS=steps)
    assert (done.returncode, f"STEPS={steps} is no number" in done.stderr) == (2, True)


@pytest.mark.parametrize("character", list(",='\"$\\()[]{}#;~ü"))
def test_the_quickstart_refuses_folders_that_hydra_would_not_take(tmp_path, character):
    """Before the data is drawn, not when the model is about to be written."""
    folder = tmp_path / f"a{character}b"
    done = run("quickstart.sh", OUTPUT_DIR=str(folder))
    assert (done.returncode, "expected letters" in done.stderr) == (2, True)
    assert not folder.exists()


def test_the_quickstart_takes_a_folder_with_a_space(tmp_path):
    done = run("quickstart.sh", OUTPUT_DIR=str(tmp_path / "a b-c_d.e+f:g%h@i"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "setting", ["experiment=a/b", "model=tiny", "tokenizer=pixel", "experiment_name=x", "-m"]
)
def test_the_launch_script_refuses_what_its_variables_set(setting):
    done = run("qwen_launch.sh", setting)
    assert done.returncode == 2
    assert "dct-vl launch" in done.stderr


def test_the_launch_script_knows_what_is_no_folder_here(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    for name, path in (("auto25", "auto25"), ("m/../n", f"{Path.cwd()}/n")):
        done = run("qwen_launch.sh", MODEL_PATH=name, DCT_VL_PYTHON=str(python))
        assert f"model.path={path}" in done.stdout.splitlines()
    for data, path in (("s3://b/W", "s3://b/W"), ("d/../W", f"{Path.cwd()}/W")):
        done = run("qwen_launch.sh", DATA_PATH=data, DCT_VL_PYTHON=str(python))
        assert f"data.path={path}" in done.stdout.splitlines()
