"""Why ranks ended, collected by whoever started them."""

from __future__ import annotations

import os

import pytest

from dct_vl.training.processes.supervise import (
    FOLDER_VARIABLE,
    describe_errors,
    first_cause,
    name_ranks,
    note_error,
)


@pytest.mark.parametrize(
    ("ranks", "name"),
    [
        ([3], "rank 3"),
        ([1, 0], "ranks 0-1"),
        ([0, 1, 2, 3, 6, 9, 10], "ranks 0-3, 6, 9-10"),
        ([2, 4], "ranks 2, 4"),
    ],
)
def test_names(ranks, name):
    assert name_ranks(ranks) == name


def test_equal_messages_are_said_once_and_the_earliest_first(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    said = {1: "step 3: bad\nmore", 10: "the disk is full", 2: "step 3: bad\nmore"}
    for time, (rank, message) in enumerate(said.items()):
        monkeypatch.setenv("RANK", str(rank))
        note_error(message)
        os.utime(tmp_path / str(rank), ns=(10**9 * time, 10**9 * time))
    assert describe_errors(tmp_path).splitlines() == [
        "error on ranks 1-2: step 3: bad",
        "more",
        "error on rank 10: the disk is full",
    ]


def test_nothing_is_left_where_nobody_asked(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    note_error("bad")
    assert list(tmp_path.iterdir()) == []
    assert describe_errors(tmp_path) == ""


def test_a_folder_that_is_gone_does_not_hide_the_error(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "gone"))
    note_error("bad")


def test_of_a_loader_processs_stacks_the_first_cause_is_told():
    """As torch passes them on: its own words, then the worker's stacks."""
    text = """Caught FatalSampleError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "rejects.py", line 77, in reject
    raise FatalSampleError(
megatron.energon.errors.FatalSampleError: 100 samples in a row: see rejects/*.jsonl

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "worker.py", line 374
megatron.energon.errors.FatalSampleError: Sample CrudeChat(__key__='a') failed
"""
    said = "FatalSampleError: 100 samples in a row: see rejects/*.jsonl"
    assert first_cause(RuntimeError(text)) == said
    assert first_cause(KeyError("a")) == "KeyError: 'a'"
