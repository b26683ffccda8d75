"""A loader's place in the data survives restarts, also with other ranks of as many streams."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch
from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    WorkerConfig,
    basic_sample_keys,
    get_savable_loader,
    get_train_dataset,
    stateless,
)

from dct_vl.errors import ConfigError
from dct_vl.inputs.samples import CrudeChat
from dct_vl.training.restart.loader_state import check_streams, redistribute, restore


@stateless
def cook(sample):
    return CrudeChat(**basic_sample_keys(sample), record=b"", images=())


class Keys(DefaultTaskEncoder):
    """Batches of keys."""

    cookers = (Cooker(cook),)
    decoder = None

    def batch(self, samples):
        return [sample.__key__ for sample in samples]


@pytest.fixture
def make_loader(shards):
    def make(num_workers, rank=0, world_size=1, states=None):
        dataset = get_train_dataset(
            shards,
            split_part="train",
            worker_config=WorkerConfig(rank=rank, world_size=world_size, num_workers=num_workers),
            batch_size=2,
            shuffle_buffer_size=4,
            max_samples_per_sequence=5,
            task_encoder=Keys(),
        )
        loader = get_savable_loader(dataset, watchdog_timeout_seconds=None)
        if states:
            restore(loader, states)
        return loader

    return make


def test_what_streams_had_read_survives_saving_at_once_after_restoring(make_loader):
    """Process 1 delivers nothing between two restarts, and goes on at its very next batch."""
    whole = list(islice(make_loader(2), 12))
    loader = make_loader(2)
    got = list(islice(loader, 5))
    for count in (1, 0, 1, 2, 3):
        loader = make_loader(2, states=loader.save_state_global(0))
        got += islice(loader, count) if count else []
    assert got == whole


def test_streams_go_on_on_other_ranks(make_loader):
    """2 streams: of one rank, then of two, and of one again."""
    whole = list(islice(make_loader(2), 10))
    loader = make_loader(2)
    got = list(islice(loader, 4))
    states = [loader.save_state_rank()]
    for num_ranks in (2, 1):
        num_workers = 2 // num_ranks
        states = redistribute(states, num_ranks=num_ranks, num_workers=num_workers)
        loaders = [make_loader(num_workers, r, num_ranks, states) for r in range(num_ranks)]
        for rank, loader in enumerate(loaders):
            got += islice(loader, num_workers)
            states[rank] = loader.save_state_rank()
    assert got == whole[:8]


def test_streams_that_meet_in_other_steps_lose_no_sample(make_loader):
    """The one rank stops in the middle of a round."""
    whole = Counter(key for batch in islice(make_loader(2), 12) for key in batch)
    loader = make_loader(2)
    got = list(islice(loader, 3))
    states = redistribute([loader.save_state_rank()], num_ranks=2, num_workers=1)
    first, second = (make_loader(1, rank, 2, states) for rank in range(2))
    got += [*islice(first, 4), *islice(second, 5)]
    assert Counter(key for batch in got for key in batch) == whole


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ((1, 3), (1, 2), r"= 3 streams, this run has 1 × 2: .*set data\.num_workers=3"),
        ((4, 2), (2, 2), r"4 data-parallel ranks × data\.num_workers=2 = 8.*num_workers=4"),
        ((4, 2), (3, 2), r"3 ranks cannot share 8 streams evenly: use 1, 2, 4, 8 ranks"),
        ((2, 0), (1, 2), r"loader without processes has a meaning for it only; set both back"),
    ],
)
def test_another_number_of_streams_is_refused_by_name(before, now, message):
    with pytest.raises(ConfigError, match=message):
        check_streams(
            ranks_before=before[0], workers_before=before[1], num_ranks=now[0], num_workers=now[1]
        )


@pytest.mark.parametrize(("before", "now"), [((1, 2), (1, 2)), ((4, 2), (8, 1)), ((2, 0), (2, 0))])
def test_as_many_streams_go_on(before, now):
    check_streams(
        ranks_before=before[0], workers_before=before[1], num_ranks=now[0], num_workers=now[1]
    )


def test_an_empty_validation_split_says_what_to_do():
    from dct_vl.training.data.module import RepeatedLoader

    with pytest.raises(
        RuntimeError, match=r"rejects_val/\*\.jsonl .*, or set trainer\.val_every=0"
    ):
        next(iter(RepeatedLoader(lambda: iter(()))))


@pytest.mark.parametrize(
    ("room", "read_anew"),
    [
        pytest.param(100, 0, id="all are kept"),
        pytest.param(17, 1, id="two are kept"),
        pytest.param(0, 1, id="none"),
    ],
)
def test_every_validation_starts_at_the_beginning_and_reads_once_what_fits(room, read_anew):
    from dct_vl.inputs.batch import Segments
    from dct_vl.training.data.module import RepeatedLoader

    # of 8 bytes each
    batches = [Segments(cu_seqlens=torch.zeros(2, dtype=torch.int32), longest=n) for n in (1, 2, 3)]
    made: list[int] = []

    def make():
        made.append(1)
        return iter(batches)

    loader = RepeatedLoader(make, kept_bytes=room)
    for _ in range(2):
        again = iter(loader)
        assert [next(again).longest for _ in range(4)] == [1, 2, 3, 1]
    before = len(made)
    short = iter(loader)
    assert [next(short).longest for _ in range(3)] == [1, 2, 3]
    assert len(made) - before == read_anew
