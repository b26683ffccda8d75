"""A loader process that hangs or dies is named, with the sample that it was at."""

from __future__ import annotations

import os
import signal
import time
from itertools import islice

import pytest
from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    WorkerConfig,
    basic_sample_keys,
    get_savable_loader,
    get_train_dataset,
    stateless,
)

from dct_vl.inputs.samples import CrudeChat
from dct_vl.training.data.loader_processes import (
    LoaderProcessError,
    WorkerBoard,
    limit_answers,
    watch,
)


@stateless
def cook(sample):
    return CrudeChat(**basic_sample_keys(sample), record=b"", images=())


class Encoder(DefaultTaskEncoder):
    """Delivers keys; what `at_third` does befalls the third sample of a process."""

    cookers = (Cooker(cook),)
    decoder = None

    def __init__(self, board, at_third):
        super().__init__()
        self.board = board
        self.at_third = at_third
        self.count = 0

    @stateless
    def encode_sample(self, sample):
        self.board.note(f"decoding {sample.__key__}")
        self.count += 1
        if self.count == 3:
            self.at_third()
        return sample

    def batch(self, samples):
        return {"sample_keys": [sample.__key__ for sample in samples]}


@pytest.fixture
def watched(shards):
    def make(at_third, timeout_s, num_workers=1):
        board = WorkerBoard(num_workers)
        config = WorkerConfig(rank=0, world_size=1, num_workers=num_workers)
        dataset = get_train_dataset(
            shards,
            split_part="train",
            worker_config=config,
            batch_size=1,
            shuffle_buffer_size=None,
            max_samples_per_sequence=None,
            task_encoder=Encoder(board, at_third),
        )
        loader = get_savable_loader(dataset, watchdog_timeout_seconds=None)
        limit_answers(loader, board, timeout_s)
        make.loader = loader
        return watch(loader, board, timeout_s)

    return make


def test_a_process_that_hangs_is_named_with_its_sample(watched):
    batches = watched(lambda: time.sleep(60), timeout_s=4.0)
    assert len([next(batches), next(batches)]) == 2
    started = time.monotonic()
    with pytest.raises(LoaderProcessError) as caught:
        next(batches)
    assert time.monotonic() - started < 30
    text = str(caught.value)
    assert "no batch for 4 s from loader process 0 of 1 (pid " in text
    assert "the last it said: decoding " in text
    assert "data.worker_timeout_s" in text


def test_a_process_that_dies_is_named_with_its_sample(watched):
    batches = watched(lambda: os.kill(os.getpid(), signal.SIGKILL), timeout_s=30.0)
    with pytest.raises(LoaderProcessError) as caught:
        list(islice(batches, 3))
    text = str(caught.value)
    assert "loader process 0 of 1" in text
    assert "decoding " in text
    assert "data.num_workers" in text


def test_a_process_that_hangs_is_named_when_its_place_is_to_be_saved(watched, tmp_path):
    hangs = tmp_path / "hangs"
    batches = watched(lambda: (hangs.touch(), time.sleep(60)), timeout_s=4.0)
    next(batches)
    while not hangs.exists():  # asked earlier, the process would answer
        time.sleep(0.05)
    started = time.monotonic()
    with pytest.raises(LoaderProcessError) as caught:
        # one batch is ready, the next one hangs
        watched.loader.save_state_rank()
    assert time.monotonic() - started < 30
    text = str(caught.value)
    assert "no checkpoint: for 4 s its place in the data was asked of loader process 0 of 1" in text
    assert "the last it said: decoding " in text


def test_an_error_that_a_process_passes_on_is_not_taken_for_its_death(watched):
    def fail(worker_id):
        raise RuntimeError("the disk timed out")

    batches = watched(lambda: None, timeout_s=30.0)
    watched.loader.worker_init_fn = fail
    with pytest.raises(RuntimeError, match="the disk timed out") as caught:
        next(batches)
    assert not isinstance(caught.value, LoaderProcessError)


def test_errors_of_samples_pass_unchanged(watched):
    def fail():
        raise SystemError("no such thing")

    batches = watched(fail, timeout_s=30.0)
    with pytest.raises(Exception, match="no such thing") as caught:
        list(islice(batches, 3))
    assert not isinstance(caught.value, LoaderProcessError)


def test_a_loader_in_the_trainer_itself_is_not_watched(watched):
    batches = watched(lambda: time.sleep(0.3), timeout_s=0.1, num_workers=0)
    assert all(len(next(batches)["sample_keys"]) == 1 for _ in range(4))
