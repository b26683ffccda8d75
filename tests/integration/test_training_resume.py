"""A run that was interrupted ends as if it had not been."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

from dct_vl.runs.checkpoint_files import list_checkpoints
from dct_vl.runs.ledger import summarize
from dct_vl.runs.run_files import STEPS_NAME, read_json_lines

pytestmark = pytest.mark.slow


def assert_goes_on_exactly(run, whole, first=4):
    """Every figure of the steps from `first` on is equal to the last digit."""
    assert [len(run.values("step")), run.values("step")[0]] == [7 - first, first]
    for name in ("loss", "grad_norm", "lr", "num_text_tokens", "num_padding_tokens"):
        assert run.values(name) == whole.values(name, first), name
    assert run.ledger() == whole.ledger(first)


def test_a_resumed_run_repeats_the_uninterrupted_one(train, reference):
    run = train("resumed", f"trainer.resume={reference.checkpoint(3)}")
    assert_goes_on_exactly(run, reference)
    assert run.validation() == reference.validation()


def test_a_finished_run_that_is_started_again_has_not_failed(train, reference, data_parallel):
    """On two ranks too; nothing of it changes but its page."""
    before = {p: p.stat().st_mtime_ns for p in reference.folder.rglob("*") if p.is_file()}
    again = ("data.num_workers=1", "trainer.val_every=0")
    for ranks, name, more in ((1, "reference", ()), (2, "data_parallel", again)):
        done = train.attempt(name, *more, ranks=ranks)
        assert done.returncode == 0, done.stderr
        said = f"{train.folder(name)} is finished at step 6, nothing is left to do"
        assert done.stderr.count(said) == 1
    after = {p: p.stat().st_mtime_ns for p in reference.folder.rglob("*") if p.is_file()}
    changed = {path.name for path in after.keys() | before if after.get(path) != before.get(path)}
    assert changed == {"summary.html", "trainer.lock"}


def test_a_run_resumed_where_it_validates_does_so_from_the_start(train, reference):
    """Its earlier validations, of which the checkpoint knows, are over."""
    settings = ("trainer.max_steps=7", "trainer.save_every=-1")
    run = train("resumed_at_6", *settings, f"trainer.resume={reference.checkpoint(6)}")
    assert run.validation() == {6: reference.validation()[6]}


def test_a_resumed_run_has_its_own_rate_and_decay(train, reference):
    """From its first step on; a checkpoint brings those of the run before."""
    settings = ("trainer.stop_at_step=5", "trainer.val_every=0", "trainer.save_every=-1")
    path = f"trainer.resume={reference.checkpoint(3)}"
    run = train("resumed_decay", *settings, path, "optim.weight_decay=30")
    assert run.values("loss")[0] == reference.values("loss", 4)[0]
    assert run.values("loss")[1] != reference.values("loss", 5)[0]
    run = train("resumed_rate", *settings, path, "optim.lr=6e-4", "optim.min_lr=2e-6")
    rates = [2 * rate for rate in reference.values("lr", 4)[:2]]
    assert run.values("lr") == pytest.approx(rates, rel=1e-6)


def test_sharded_optimizer_states_resume_exactly(train, data_parallel):
    """Each of two data-parallel ranks holds half of the optimizer's state."""
    path = data_parallel.checkpoint(3)
    run = train(
        "data_parallel_resumed",
        *("data.num_workers=1", "trainer.val_every=0", f"trainer.resume={path}"),
        ranks=2,
    )
    assert_goes_on_exactly(run, data_parallel)


def test_a_resumed_run_may_change_its_layout(train, reference):
    """One rank's checkpoint goes on at two tensor-parallel ranks."""
    path = reference.checkpoint(3)
    run = train(
        "resumed_split",
        *("trainer.tensor_parallel_size=2", f"trainer.resume={path}", "trainer.save_every=-1"),
        ranks=2,
    )
    assert run.ledger() == reference.ledger(4)
    assert run.values("loss") == pytest.approx(reference.values("loss", 4), rel=1e-5)
    assert run.values("grad_norm") == pytest.approx(reference.values("grad_norm", 4), rel=1e-4)
    assert run.validation()[6] == pytest.approx(reference.validation()[6], rel=1e-5)


def test_a_resumed_run_may_change_its_data_parallel_size(train, reference):
    """One rank's two loader processes go on as one process on each of two ranks."""
    settings = ("data.num_workers=1", "trainer.val_every=0", "trainer.save_every=-1")
    path = reference.checkpoint(3)
    run = train("resumed_wide", *settings, f"trainer.resume={path}", ranks=2)
    assert run.ledger() == reference.ledger(4)
    assert run.values("loss") == pytest.approx(reference.values("loss", 4), rel=1e-5)


def test_a_killed_run_goes_on_by_itself(train, reference):
    """SIGKILL in the middle of a step or of a checkpoint; the same command then finishes."""
    overrides = ("trainer.save_every=2", "trainer.keep_last=1")
    folder = train.folder("killed")
    process = subprocess.Popen(
        train.command("killed", overrides),
        env=train.environ(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and len(read_json_lines(folder / STEPS_NAME)) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
    done = len(read_json_lines(folder / STEPS_NAME))
    assert 3 <= done < 6
    assert len(list_checkpoints(folder)) == 1

    run = train("killed", *overrides)
    assert run.values("loss") == reference.values("loss")
    assert run.values("grad_norm") == reference.values("grad_norm")
    assert run.ledger() == reference.ledger()
    found = summarize(folder)
    assert (found.num_steps, found.by_times, found.missing_steps) == (6, {1: 24}, ())
    assert [path.name for path in list_checkpoints(folder)] == ["step-00000006"]
    assert not list((folder / "checkpoints").glob("*unfinished"))
    assert run.validation() == reference.validation()


def test_a_full_disk_ends_the_run_with_what_to_do(train):
    folder = train.folder("full")
    folder.mkdir()
    (folder / STEPS_NAME).symlink_to("/dev/full")
    done = train.attempt("full", "trainer.save_every=-1", "trainer.val_every=0")
    assert done.returncode == 1
    assert "error: a file of the run could not be written ([Errno 28] No space" in done.stderr
    assert "make room, and the same command goes on from there" in done.stderr
    assert "Traceback" not in done.stderr
