"""Faults of checkpoints are found and named; the best and the newest ones are kept."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from dct_vl.errors import SaveError, StopRequested
from dct_vl.runs.checkpoint_files import (
    META_NAME,
    best_checkpoints,
    find_fault,
    list_checkpoints,
    list_files,
    newest_intact,
)
from dct_vl.runs.run_files import append_json_line
from dct_vl.training.restart.checkpoints import (
    CheckpointWriter,
    drop_checkpoints,
    remove_leftovers,
    set_aside_after,
)
from dct_vl.training.restart.stop_signals import StopSignals


def write(run: Path, step: int) -> Path:
    path = run / "checkpoints" / f"step-{step:08d}"
    (path / "weights").mkdir(parents=True)
    (path / "weights" / "0.distcp").write_bytes(bytes(1000))
    (path / "weights" / "common.pt").write_bytes(b"common")
    (path / META_NAME).write_text(json.dumps({"step": step, "files": list_files(path)}))
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: cut(p / "weights" / "0.distcp"), "weights/0.distcp has 999 bytes, 1000 were"),
        (lambda p: (p / "weights" / "common.pt").unlink(), "weights/common.pt is missing"),
        (lambda p: (p / "weights" / "common.pt").write_bytes(b"cammon"), "has other contents"),
        (lambda p: cut(p / META_NAME), "cannot be read"),
        (lambda p: (p / META_NAME).write_text("[]"), "does not say its step"),
        (lambda p: (p / META_NAME).unlink(), "no dct_vl.json in it"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, damage, message):
    sound, newest = write(tmp_path, 2), write(tmp_path, 4)
    assert find_fault(newest) is None
    assert newest_intact(tmp_path).path == newest
    damage(newest)
    assert message in find_fault(newest)
    found = newest_intact(tmp_path)
    assert (found.path, [path for path, _ in found.damaged]) == (sound, [newest])


def test_a_hole_in_a_large_file_is_found(tmp_path):
    """As a machine leaves it that lost its power: the size is right, the contents are not."""
    path = write(tmp_path, 2)
    tensors = path / "weights" / "1.distcp"
    tensors.write_bytes(os.urandom(1 << 20) * 8)
    (path / META_NAME).write_text(json.dumps({"step": 2, "files": list_files(path)}))
    assert find_fault(path) is None
    with open(tensors, "r+b") as file:
        file.seek(3 << 20)
        file.write(bytes(1 << 20))
    assert "weights/1.distcp has other contents than were written" in find_fault(path)


def test_a_checkpoint_without_its_files_checksums_is_taken_as_it_is(tmp_path):
    path = write(tmp_path, 2)
    files = {name: [size, None] for name, (size, _) in list_files(path).items()}
    (path / META_NAME).write_text(json.dumps({"step": 2, "files": files}))
    (path / "weights" / "common.pt").write_bytes(b"cammon")
    assert find_fault(path) is None


def test_half_written_ones_are_not_looked_at(tmp_path):
    write(tmp_path, 2)
    path = write(tmp_path, 4)
    path.rename(path.with_name(f"{path.name}-unfinished"))
    assert newest_intact(tmp_path).path.name == "step-00000002"
    assert newest_intact(tmp_path).damaged == ()


def test_damaged_ones_do_not_count_as_newest_afterwards(tmp_path, capsys):
    for step in (2, 4, 6):
        write(tmp_path, step)
    set_aside_after(tmp_path, 4)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000004", "step-00000006-damaged"]
    assert "step-00000006-damaged" in capsys.readouterr().err
    set_aside_after(tmp_path, 4)
    assert len(list_checkpoints(tmp_path)) == 2


def test_the_best_and_the_newest_are_kept(tmp_path):
    for step, loss in ((2, 3.0), (4, 1.0), (6, None), (8, 2.0), (10, 9.0), (4, 1.5)):
        append_json_line(tmp_path / "validation.jsonl", {"step": step, "loss": loss})
    paths = {step: write(tmp_path, step) for step in (2, 4, 6, 8, 10, 12)}
    assert best_checkpoints(tmp_path, 2) == [paths[4], paths[8]]
    drop_checkpoints(tmp_path, keep_last=2, keep_best=2)
    assert list_checkpoints(tmp_path) == [paths[4], paths[8], paths[10], paths[12]]
    drop_checkpoints(tmp_path, keep_last=1, keep_best=0)
    assert list_checkpoints(tmp_path) == [paths[12]]


def test_a_trainer_killed_while_it_drops_leaves_nothing_for_ever(tmp_path, monkeypatch):
    for step in (2, 4):
        write(tmp_path, step)

    def killed(path, **_):
        (next(path.rglob("*.distcp"))).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            drop_checkpoints(tmp_path, keep_last=1, keep_best=0)
    assert newest_intact(tmp_path).damaged == ()
    remove_leftovers(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def test_a_full_disk_is_named_and_leaves_the_checkpoint_before(tmp_path):
    write(tmp_path, 2)

    def save_checkpoint(path):
        raise OSError(28, "No space left on device")

    writer = CheckpointWriter(
        tmp_path, every=2, last_step=8, keep=1, meta={}, stop=StopSignals(), is_async=False
    )
    message = (
        r"step 4 could not be written \(.*No space left.*\); the newest checkpoint is step-00000002"
    )
    with pytest.raises(SaveError, match=message):
        writer.save(SimpleNamespace(save_checkpoint=save_checkpoint), 4)


def test_a_signal_while_a_checkpoint_is_written_ends_the_run_there(tmp_path):
    stop = StopSignals()
    writer = CheckpointWriter(tmp_path, every=2, last_step=8, keep=1, meta={}, stop=stop)

    def save(trainer, step):
        stop._on_signal(signal.SIGUSR1, None)

    writer.save = save
    with pytest.raises(StopRequested, match="after step 4"):
        writer.on_train_batch_end(SimpleNamespace(global_step=4))
