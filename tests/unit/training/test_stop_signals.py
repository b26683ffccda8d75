"""Signals end a run after a step, and the process that collects writers' reports outlives them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dct_vl.shipped import ROOT
from dct_vl.training.restart.stop_signals import StopSignals

#: a rank: steps of 50 ms until asked to stop; writes where it is and how it ended
RANK = """
import os, sys, time
from dct_vl.training.restart.stop_signals import StopSignals
time.sleep(float(sys.argv[2]))
stop = StopSignals(); stop.install()
place = sys.argv[1] + os.environ.get("RANK", "0")
open(place, "w").write("runs")
while not stop.asked: time.sleep(0.05)
open(place, "w").write("asked")
time.sleep(float(sys.argv[3]))
open(place, "w").write("saved")
stop.restore()
"""
LAUNCH = """
import os, sys
from dct_vl.training.processes.supervise import supervise
torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
sys.exit(supervise([*torchrun, *sys.argv[1:]], dict(os.environ)))
"""


@pytest.fixture
def stop():
    signals = StopSignals()
    signals.install()
    yield signals
    signals.restore()


def test_a_signal_is_remembered_and_handlers_are_given_back(stop):
    assert not stop.agreed()
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.agreed(), "and the second, sent along with the first, did no harm"
    stop.install()
    stop.restore()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def wait_for(paths, text):
    for _ in range(1200):
        if all(path.is_file() and path.read_text() == text for path in paths):
            return
        time.sleep(0.05)
    raise AssertionError([path.is_file() and path.read_text() for path in paths])


def test_a_second_sigterm_ends_the_process_at_once(tmp_path):
    command = [sys.executable, "-c", RANK, f"{tmp_path}/", "0", "60"]
    process = subprocess.Popen(command, cwd=ROOT)
    wait_for([tmp_path / "0"], "runs")
    process.send_signal(signal.SIGTERM)
    wait_for([tmp_path / "0"], "asked")
    time.sleep(2.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM


def test_the_first_sigterm_is_a_request_also_after_other_signals(tmp_path):
    """What Slurm sends as a warning long before its SIGTERM is no SIGTERM."""
    command = [sys.executable, "-c", RANK, f"{tmp_path}/", "0", "3"]
    process = subprocess.Popen(command, cwd=ROOT)
    wait_for([tmp_path / "0"], "runs")
    process.send_signal(signal.SIGUSR1)
    wait_for([tmp_path / "0"], "asked")
    time.sleep(2.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert (tmp_path / "0").read_text() == "saved"


def launch(tmp_path: Path, *, late: float, saving: float) -> subprocess.Popen[bytes]:
    rank = tmp_path / "rank.py"
    rank.write_text(RANK)
    command = [sys.executable, "-c", LAUNCH, str(rank), f"{tmp_path}/", str(late), str(saving)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environ, start_new_session=True)


def test_a_launcher_ends_well_when_its_whole_group_is_signalled(tmp_path):
    process = launch(tmp_path, late=0, saving=1)
    ranks = [tmp_path / "0", tmp_path / "1"]
    wait_for(ranks, "runs")
    # as `timeout` does it: to its child, and then to the group
    for _ in range(2):
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.3)
    assert process.wait(60) == 0
    wait_for(ranks, "saved")


def test_a_launcher_kills_its_ranks_when_told_twice(tmp_path):
    process = launch(tmp_path, late=0, saving=600)
    ranks = [tmp_path / "0", tmp_path / "1"]
    wait_for(ranks, "runs")
    process.send_signal(signal.SIGTERM)
    wait_for(ranks, "asked")
    time.sleep(2.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM


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
