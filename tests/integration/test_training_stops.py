"""Training that is killed and stopped again and again ends as if it had not been."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import time

import pytest

from dct_vl.runs.checkpoint_files import list_checkpoints
from dct_vl.runs.ledger import read_ledger, summarize
from dct_vl.runs.run_files import STEPS_NAME, read_json_lines
from dct_vl.training.watch.guard_rails import BAD_STEPS_NAME

pytestmark = pytest.mark.slow

#: 88 of the 119 samples
NUM_STEPS = 22
OVERRIDES = (
    f"trainer.max_steps={NUM_STEPS}",
    "trainer.save_every=2",
    "trainer.keep_last=2",
    "trainer.val_every=0",
    # the loader processes are in the middle of a round at every second checkpoint
    "trainer.micro_batch_size=4",
    "data.shuffle_buffer_size=8",
)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1, signal.SIGTERM)


@pytest.fixture(scope="module")
def whole(train):
    return train("whole", *OVERRIDES)


def interrupt(train, name, number, steps):
    """Start a run, signal it after it has done so many steps, and return (status, stderr)."""
    log = train.folder(f"{name}.log")
    steps_file = train.folder(name) / STEPS_NAME
    before = len(read_json_lines(steps_file))
    # a file: loader processes would hold a pipe open for some seconds after their trainer's death
    with open(log, "w") as stderr:
        process = subprocess.Popen(
            train.command(name, OVERRIDES),
            env=train.environ(),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        while process.poll() is None and len(read_json_lines(steps_file)) < before + steps:
            time.sleep(0.002)
        assert process.poll() is None, log.read_text()[-4000:]
        process.send_signal(number)
        return process.wait(60), log.read_text()


def test_five_interruptions_change_nothing(train, whole):
    folder = train.folder("stopped")
    chance = random.Random(8)
    for number in SIGNALS:
        status, said = interrupt(train, "stopped", number, chance.randint(1, 3))
        if number == signal.SIGKILL:
            assert status == -signal.SIGKILL
            continue
        assert status == 0, said
        step = int(re.search(r"stopped by a signal after step (\d+), saved", said)[1])
        assert list_checkpoints(folder)[-1].name == f"step-{step:08d}"
        assert not list((folder / "checkpoints").glob("*unfinished*"))
    run = train("stopped", *OVERRIDES)
    for name in ("loss", "grad_norm", "lr", "num_text_tokens"):
        assert run.values(name) == whole.values(name), name
    assert run.ledger() == whole.ledger()
    found = summarize(folder)
    assert (found.by_times, found.missing_steps) == ({1: 4 * NUM_STEPS}, ())
    (epoch,) = found.epochs
    assert (epoch.num_once, epoch.num_twice) == (4 * NUM_STEPS, 0)
    assert epoch.num_never == found.num_never == found.num_samples - 4 * NUM_STEPS


def test_a_loss_that_is_not_finite_ends_the_run_on_every_rank(train):
    """Two pipeline stages, of which only the last knows the loss; a rate that breaks the model. The
    launcher's last line says why, below torchrun's.
    """
    settings = ("optim.lr=1e30", "trainer.val_every=0", "trainer.save_every=1")
    layout = ("trainer.pipeline_parallel_size=2", "logger.tensorboard=false")
    done = train.launch("broken", *settings, *layout, ranks=2)
    assert done.returncode == 1
    assert "ChildFailedError" in done.stderr
    why = r"error on ranks 0-1: step 2: the (loss|gradient norm) is .*; the run stops before it\. "
    assert re.match(why, last := done.stderr.splitlines()[-1]), last
    assert "trainer.on_bad_loss=skip" in last
    folder = train.folder("broken")
    (entry,) = read_json_lines(folder / BAD_STEPS_NAME / "dp0000.jsonl")
    keys = [key for batch in entry["micro_batches"] for key in batch["keys"]]
    assert entry["step"] == 2
    assert set(keys) == set(read_ledger(folder)[2])
    assert len(keys) == 4
    assert [path.name for path in list_checkpoints(folder)] == ["step-00000001"]
