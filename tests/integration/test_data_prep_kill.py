"""A run that is killed at any moment, and run again, ends as if nothing had happened."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mixed_set import write_mixed_set

from data_prep.drawn import write_drawn_dataset

NUM_KILLS = 10


def command(source: Path, output: Path, workers: int) -> list[str]:
    """Of a folder the verb `cambrian`, of a file of entries `convert`."""
    verb = ["convert", str(source)] if source.is_file() else ["cambrian", "--data-dir", str(source)]
    return [
        *(sys.executable, "-m", "data_prep", *verb),
        *("--output-dir", str(output), "--workers", str(workers), "--shard-size", "40"),
        *("--shuffle-seed", "5", "--text-only", "keep"),
    ]


def outcome(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_drawn_dataset(folder, num_entries=1500, seed=4)
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Messages with images, some of them inside the entry, with videos and text alone; a JSONL."""
    return write_mixed_set(tmp_path_factory.mktemp("mixed"), 270, messages=True)


def calm_run(source: Path, output: Path) -> tuple[dict[str, bytes], float]:
    """What a run leaves, and the seconds that it takes."""
    start = time.monotonic()
    subprocess.run(command(source, output, 1), check=True, capture_output=True)
    return outcome(output), time.monotonic() - start


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> tuple[dict[str, bytes], float]:
    return calm_run(data, tmp_path_factory.mktemp("calm"))


@pytest.mark.slow
@pytest.mark.parametrize(("source", "workers"), [("data", 1), ("mixed", 2)])
def test_killed_at_random_moments(source, workers, tmp_path, request):
    data = request.getfixturevalue(source)
    expected, seconds = calm_run(data, tmp_path / "calm")
    moments = random.Random(workers)
    interrupted = 0
    for attempt in range(NUM_KILLS):
        output = tmp_path / str(attempt)
        resumed = False
        while True:
            started = time.monotonic()
            process = subprocess.Popen(
                command(data, output, workers),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                status = process.wait(timeout=moments.uniform(0.2, 1.0) * seconds)
                if not resumed:  # the machine had more to do when the undisturbed run was timed
                    seconds = min(seconds, time.monotonic() - started)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                interrupted += 1
                resumed = True
                if moments.random() < 0.5:
                    continue  # killed again, wherever it resumed
                status = subprocess.run(
                    command(data, output, workers), capture_output=True
                ).returncode
            break
        assert status == 0
        found = outcome(output)
        assert sorted(found) == sorted(expected)
        assert found == expected
    assert interrupted >= NUM_KILLS // 2, "the kills came too late to test anything"


@pytest.mark.slow
def test_a_retry_killed_at_random_moments(data, tmp_path):
    """A tar comes late, and the retry that takes it in is killed on the way."""
    source = tmp_path / "data"
    shutil.copytree(data, source)
    late = (source / "shapes.tar").rename(tmp_path / "shapes.tar")
    first = tmp_path / "first"
    subprocess.run(command(source, first, 2), check=True, capture_output=True)
    late.rename(source / "shapes.tar")
    calm = tmp_path / "calm"
    shutil.copytree(first, calm)
    start = time.monotonic()
    subprocess.run([*command(source, calm, 2), "--retry-quarantined"], check=True)
    seconds = time.monotonic() - start
    assert len(outcome(calm)) > len(outcome(first))
    for attempt in range(5):
        output = tmp_path / str(attempt)
        shutil.copytree(first, output)
        retry = [*command(source, output, 2), "--retry-quarantined"]
        with subprocess.Popen(retry, stdout=subprocess.DEVNULL) as process:
            time.sleep(seconds * (attempt + 1) / 6)
            process.kill()
        subprocess.run(retry, check=True, capture_output=True)
        assert outcome(output) == outcome(calm)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_workers_do_not_show(data, undisturbed, tmp_path, workers):
    subprocess.run(command(data, tmp_path / "W", workers), check=True, capture_output=True)
    assert outcome(tmp_path / "W") == undisturbed[0]


def test_workers_end_with_a_killed_parent(data, tmp_path):
    process = subprocess.Popen(
        command(data, tmp_path / "W", 2), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (workers := children(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert workers
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_ctrl_c_is_quiet_and_the_same_command_goes_on(data, undisturbed, tmp_path):
    for attempt in range(8):
        output = tmp_path / str(attempt)
        process = subprocess.Popen(
            command(data, output, 2), stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        while process.poll() is None and not list(output.glob("pretrain-*.tar")):
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        if process.returncode != 0:  # it was not at its end already, as on a busy machine
            break
    assert process.returncode == 130
    assert errors == "interrupted; the same command resumes from here\n"
    subprocess.run(command(data, output, 2), check=True, capture_output=True)
    assert outcome(output) == undisturbed[0]


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children") if _alive(pid) else []:
        found += [int(child) for child in task.read_text().split()]
    return found


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
