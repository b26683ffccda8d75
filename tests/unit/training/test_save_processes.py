"""The process that collects writers' reports outlives signals, and not the trainer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[3]
TRAINER = """
import sys, time
from dct_vl.compat import activate
activate()
from megatron.core.dist_checkpointing.strategies import filesystem_async
from dct_vl.training.restart.stop_signals import shield_from_signals
from dct_vl.training.restart.stop_signals import StopSignals

if __name__ == "__main__":
    StopSignals().install()
    shield_from_signals()
    queue = filesystem_async._get_write_results_queue()
    print("ready", flush=True)
    sys.stdin.readline()
    queue.put(7)
    print(queue.get(), flush=True)
    time.sleep(60)
"""


@pytest.fixture
def trainer(tmp_path):
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    process = subprocess.Popen(
        [sys.executable, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()


def test_a_group_is_signalled_and_the_trainer_killed(trainer):
    children = psutil.Process(trainer.pid).children()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.killpg(trainer.pid, number)
    time.sleep(0.2)
    trainer.stdin.write("\n")
    trainer.stdin.flush()
    assert trainer.stdout.readline() == "7\n"
    trainer.kill()
    _, left = psutil.wait_procs(children, timeout=10)
    assert children
    assert not left, [process.cmdline() for process in left]
