"""Checkpoints that are written while training goes on are whole or absent, whatever happens."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dct_vl.runs.checkpoint_files import find_fault, list_checkpoints
from dct_vl.runs.run_files import STEPS_NAME, read_json_lines

pytestmark = pytest.mark.slow

OVERRIDES = ("trainer.async_save=true",)


def start_on_slow_disk(
    train, name: str, log: Path, *more: str, seconds: int = 4
) -> subprocess.Popen[bytes]:
    """A run whose every file takes `seconds` to write, which is longer than a few steps."""
    _, _, _, *words = train.command(name, (*OVERRIDES, *more))
    script = Path(__file__).with_name("slow_disk.py")
    environ = {**train.environ(), "PYTHONPATH": str(Path(__file__).parents[2])}
    with open(log, "w") as out:
        return subprocess.Popen(
            [sys.executable, script, str(seconds), *words], env=environ, stdout=out, stderr=out
        )


def wait_for_step(process: subprocess.Popen[bytes], folder: Path, step: int, log: Path) -> None:
    while not any(e["step"] >= step for e in read_json_lines(folder / STEPS_NAME)):
        assert process.poll() is None, log.read_text()[-4000:]
        time.sleep(0.005)


def test_killed_while_it_is_written(train, reference, tmp_path):
    """The writing process lives on for a while, and cannot reach what the next start writes."""
    folder, log = train.folder("killed_writing"), tmp_path / "log"
    process = start_on_slow_disk(train, "killed_writing", log, seconds=30)
    wait_for_step(process, folder, 4, log)
    # the writing process may begin later than the trainer's next step
    while not list((folder / "checkpoints").glob("step-00000003-unfinished-*")):
        assert process.poll() is None, log.read_text()[-4000:]
        time.sleep(0.005)
    assert not list_checkpoints(folder)  # steps went on meanwhile
    process.kill()
    process.wait()
    run = train("killed_writing", *OVERRIDES)
    assert run.values("loss") == reference.values("loss")
    assert run.ledger() == reference.ledger()
    found = list_checkpoints(folder)
    assert [path.name for path in found] == ["step-00000003", "step-00000006"]
    assert not [find_fault(path) for path in found if find_fault(path)]


def test_stopped_while_it_is_written(train, tmp_path):
    """What is being written, and the state of the last step, are both whole at the end."""
    folder, log = train.folder("stopped_writing"), tmp_path / "log"
    process = start_on_slow_disk(train, "stopped_writing", log, "trainer.max_steps=1000")
    wait_for_step(process, folder, 4, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0, log.read_text()[-4000:]
    step = int(re.search(r"stopped by a signal after step (\d+), saved", log.read_text())[1])
    found = list_checkpoints(folder)
    assert found[-1].name == f"step-{step:08d}"
    assert len(found) == 2
    assert not [find_fault(path) for path in found if find_fault(path)]
    assert not list((folder / "checkpoints").glob("*unfinished*"))
