"""Ranks write where they are, and the one that the others wait for is named."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

from dct_vl.training.watch.rank_watch import (
    FOLDER_NAME,
    Place,
    RankBoard,
    RankWatch,
    clear_places,
    describe_stall,
    read_places,
    speakers,
)


def test_the_rank_that_is_behind_is_named(tmp_path):
    boards = [RankBoard(tmp_path, rank) for rank in range(3)]
    for board in boards:
        board.note(11, "finishes the step")
    boards[0].note(12, "updates")
    boards[2].note(12, "computes")
    boards[1].note(12, "reads data")
    places = read_places(tmp_path, 3)
    assert [(p.step, p.phase, p.pid) for p in places] == [
        (12, phase, os.getpid()) for phase in ("updates", "reads data", "computes")
    ]
    text = describe_stall(places, 3, places[1].since + 40)
    assert text.splitlines() == [
        "2 others wait for:",
        f"  rank 1 ({os.uname().nodename}, pid {os.getpid()}): step 12, reads data for 40 s",
    ]
    for board in boards:
        board.close()


def test_ranks_that_never_spoke_are_named(tmp_path):
    RankBoard(tmp_path, 1).note(1, "reads data")
    text = describe_stall(read_places(tmp_path, 3), 3, time.time())
    assert text.startswith("ranks that have not said anything yet: 0, 2\nall ranks are at the same")


def place(rank: int, step: int, host: str) -> Place:
    return Place(rank=rank, step=step, phase="computes", host=host, pid=1, since=0.0)


def test_one_rank_of_each_machine_speaks():
    """Not the one that is waited for, and of many not all."""
    ranks = [place(r, 7, "a" if r < 4 else "b") for r in range(8)]
    assert speakers(ranks) == {0, 4}
    ranks[0] = place(0, 6, "a")
    assert speakers(ranks) == {1, 4}
    assert speakers([]) == set()


def test_a_start_forgets_the_places_of_the_one_before(tmp_path):
    RankBoard(tmp_path / FOLDER_NAME, 1).note(500, "saves")
    clear_places(tmp_path)
    clear_places(tmp_path)
    RankBoard(tmp_path / FOLDER_NAME, 0).note(400, "reads data")
    text = describe_stall(read_places(tmp_path / FOLDER_NAME, 2), 2, time.time())
    assert text.startswith("ranks that have not said anything yet: 1\n")


def test_a_standstill_is_reported_while_it_lasts(tmp_path, capfd):
    """Rank 1 of two does not move; rank 0 says so, and falls silent when the run is over."""
    trainer = SimpleNamespace(global_step=4)
    RankBoard(tmp_path / "ranks", 1).note(5, "reads data")
    watch = RankWatch(tmp_path, rank=0, world_size=2, after_s=0.2)
    module = SimpleNamespace()
    watch.on_train_start(trainer, module)
    module.note_phase("computes")
    watch.on_before_optimizer_step(trainer)
    time.sleep(1.2)
    text = capfd.readouterr().err
    assert text.count("rank 0 has not moved for 0.2 s") >= 2
    assert "1 others wait for:\n  rank 1 " in text
    watch.teardown(trainer, module, "fit")
    time.sleep(0.3)
    capfd.readouterr()
    time.sleep(0.6)
    assert not capfd.readouterr().err
