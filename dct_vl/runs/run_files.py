"""What a run leaves beside its checkpoints: configuration, code state, versions, steps, lock."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dct_vl.errors import ConfigError
from dct_vl.inputs.shard_index import data_identity
from dct_vl.runs.config.schema import RunConfig
from dct_vl.shipped import ROOT

CONFIG_NAME = "config.yaml"
ENVIRONMENT_NAME = "environment.json"
STEPS_NAME = "steps.jsonl"
VALIDATION_NAME = "validation.jsonl"
LOCK_NAME = "trainer.lock"
WANDB_ID_NAME = "wandb-id.txt"
#: packages whose versions decide what a run computes
PACKAGES = (
    "torch",
    "nemo_toolkit",
    "megatron-core",
    "megatron-energon",
    "transformers",
    "transformer_engine",
    "lightning",
    "numpy",
    "pillow",
)


def run_dir(run: RunConfig) -> Path:
    """The run's folder."""
    return Path(run.log_dir) / run.experiment_name


def write_provenance(run: RunConfig, folder: Path, *, resumed_at: int = 0) -> None:
    """config.yaml (loads back with `read_config`), and environment.json.

    Args:
        resumed_at: the step that the run resumes from, 0 for a run that starts. What was
            written at earlier starts stays, and config-resumed-00000200.yaml and
            environment-resumed-00000200.json are added where they differ from the latest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _keep(folder / CONFIG_NAME, OmegaConf.to_yaml(asdict(run)), resumed_at)
    environment = {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "git": git_state(),
        "data": data_identity(run.data.path),
    }
    _keep(folder / ENVIRONMENT_NAME, json.dumps(environment, indent=2), resumed_at)


def _keep(first: Path, text: str, resumed_at: int) -> None:
    for path in _of_resumed(first):
        # of starts whose every step is done again
        if int(path.stem[-8:]) >= max(resumed_at, 1):
            path.unlink()
    if not resumed_at or not first.is_file():
        first.write_text(text)
    elif latest_file(first.parent, first.name).read_text() != text:
        first.with_name(f"{first.stem}-resumed-{resumed_at:08d}{first.suffix}").write_text(text)


def latest_file(folder: str | Path, name: str) -> Path:
    """`CONFIG_NAME` or `ENVIRONMENT_NAME` of a run as it was last started."""
    first = Path(folder) / name
    return [first, *_of_resumed(first)][-1]


def _of_resumed(first: Path) -> list[Path]:
    return sorted(first.parent.glob(f"{first.stem}-resumed-{'[0-9]' * 8}{first.suffix}"))


def read_config(folder: str | Path) -> RunConfig:
    """The configuration that a run was last started with.

    Raises:
        ValueError: the folder is not a run's, or its configuration is damaged.
    """
    path = latest_file(folder, CONFIG_NAME)
    if not path.is_file():
        raise ValueError(f"{folder} is not a run's folder: it has no config.yaml")
    try:
        run = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.load(path))
        )
    except (OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({' '.join(str(error).split())}): it is cut off, or of another "
            "version; put it back, for instance the one of a run with the same settings"
        ) from error
    assert isinstance(run, RunConfig)
    return run


def package_versions() -> dict[str, str]:
    """Installed versions of `PACKAGES`."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any]:
    """Commit and changed files of this checkout; empty where there is no git."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain").splitlines()
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": commit, "changed": changed}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def append_json_line(path: Path, entry: dict[str, Any]) -> None:
    """Append one line; a killed process leaves at most one broken last line."""
    with open(path, "ab+") as file:
        # what is left of a broken line must not swallow this one
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        end = b"" if file.read(1) in (b"", b"\n") else b"\n"
        file.write(end + orjson.dumps(entry) + b"\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Entries of a file of `append_json_line`, without broken lines."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_bytes().splitlines():
        try:
            entries.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            continue
    return entries


def read_steps(folder: str | Path) -> list[dict[str, Any]]:
    """Entries of steps.jsonl by step: of steps that were done twice, the later run's."""
    return _last_by_step(Path(folder) / STEPS_NAME)


def read_validation(folder: str | Path) -> list[dict[str, Any]]:
    """Entries of validation.jsonl by step, likewise."""
    return _last_by_step(Path(folder) / VALIDATION_NAME)


def _last_by_step(path: Path) -> list[dict[str, Any]]:
    by_step = {entry["step"]: entry for entry in read_json_lines(path)}
    return [by_step[step] for step in sorted(by_step)]


#: of the runs that this process has claimed; open as long as it lives
_held: dict[Path, int] = {}


def claim(folder: Path) -> None:
    """Lock a run's folder until this process ends, however it ends.

    A lock of `fcntl`: it goes with the process, which no child inherits it from, and is known to
    other machines that share the folder. Where the file system has no locks there is none.

    Raises:
        ConfigError: another process trains in the folder.
    """
    path = (folder / LOCK_NAME).resolve()
    if path in _held:
        return  # opening the file again and closing it would give the lock up
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    _held[path] = file
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        owner = os.pread(file, 200, 0).decode(errors="replace").strip()
        del _held[path]
        os.close(file)
        raise ConfigError(
            f"{folder}: another process trains there ({owner}): wait until it has ended, end it, "
            "or use another experiment_name"
        ) from None
    except OSError:
        return
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.uname().nodename}, pid {os.getpid()}".encode(), 0)


def wandb_id(folder: Path) -> str:
    """The id of the W&B run that belongs to the run in `folder`, made where there is none.

    Only the first rank, which is the one that logs, may ask.
    """
    file = folder / WANDB_ID_NAME
    known = file.read_text().strip() if file.is_file() else ""
    if not known:
        known = uuid4().hex[:8]
        file.write_text(f"{known}\n")
    return known


def begin_wandb_run(folder: Path) -> None:
    """Let what starts at step 0 in `folder` be a run of its own."""
    (folder / WANDB_ID_NAME).unlink(missing_ok=True)
