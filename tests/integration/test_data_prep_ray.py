"""The Ray engine gives the bytes of the local one, also when a worker is lost on the way."""

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from data_prep.drawn import write_drawn_dataset

pytest.importorskip("ray")

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [
    *(sys.executable, "-m", "data_prep", "cambrian", "--shard-size", "30", "--shuffle-seed", "1"),
    *("--text-only", "keep", "--reencode"),
]


def outcome(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_drawn_dataset(folder, num_entries=1500, seed=6)
    return folder


@pytest.fixture(scope="module")
def local(data, tmp_path_factory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("local")
    where = ["--data-dir", str(data), "--output-dir", str(output)]
    subprocess.run([*COMMAND, *where, "--workers", "1"], check=True, capture_output=True)
    return outcome(output)


def start_with_ray(data: Path, output: Path) -> subprocess.Popen[str]:
    """From another folder, with relative paths: Ray's workers start in a folder of their own."""
    where = ["--data-dir", data.name, "--output-dir", os.path.relpath(output, data.parent)]
    command = [*COMMAND, *where, "--engine", "ray", "--workers", "2"]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=data.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_same_bytes_as_local(data, local, tmp_path):
    process = start_with_ray(data, tmp_path / "W")
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert outcome(tmp_path / "W") == local


@pytest.mark.slow
def test_a_lost_worker(data, local, tmp_path):
    process = start_with_ray(data, tmp_path / "W")
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_worker, args=(process, killed))
    killer.start()
    text, _ = process.communicate(timeout=300)
    killer.join()
    assert process.returncode == 0, text
    assert killed, "no worker was found in time"
    assert outcome(tmp_path / "W") == local


def kill_one_worker(process: subprocess.Popen[str], killed: list[int]) -> None:
    """SIGKILL a Ray worker while it makes a shard."""
    parent = psutil.Process(process.pid)
    while process.poll() is None and not killed:
        with suppress(psutil.NoSuchProcess):
            for child in parent.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if "ray::make_shard" in " ".join(child.cmdline()):
                        child.kill()
                        killed.append(child.pid)
                        break
        time.sleep(0.01)
