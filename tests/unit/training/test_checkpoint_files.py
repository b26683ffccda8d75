"""Faults of checkpoints are found and named; the best and the newest ones are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.checkpoint_files import META_NAME, find_fault, list_files
from training.checkpoints import (
    best_checkpoints,
    drop_checkpoints,
    list_checkpoints,
    newest_sound,
    set_aside_after,
)
from training.run_files import append_json_line


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
    assert newest_sound(tmp_path).path == newest
    damage(newest)
    assert message in find_fault(newest)
    found = newest_sound(tmp_path)
    assert (found.path, [path for path, _ in found.damaged]) == (sound, [newest])


def test_half_written_ones_are_not_looked_at(tmp_path):
    write(tmp_path, 2)
    path = write(tmp_path, 4)
    path.rename(path.with_name(f"{path.name}-unfinished"))
    assert newest_sound(tmp_path).path.name == "step-00000002"
    assert newest_sound(tmp_path).damaged == ()


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
