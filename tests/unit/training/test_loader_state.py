"""A loader's place in the data has a meaning only for the same ranks and loader processes."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch

from training.config.overrides import ConfigError


@pytest.fixture
def load_state(build_module):
    """load_state_dict of a data module with two loader processes on one rank."""
    from training.data.module import ChatDataModule

    def load(*, num_workers: int, num_ranks: int) -> None:
        payload = {"dataloader_state": [None] * num_ranks, "num_workers": num_workers}
        pickled = torch.frombuffer(bytearray(pickle.dumps(payload)), dtype=torch.uint8)
        module = SimpleNamespace(num_workers=2)
        ChatDataModule.load_state_dict(module, {"pickled": pickled})

    return load


def test_other_loader_processes_are_refused_by_name(load_state):
    with pytest.raises(ConfigError, match=r"had data\.num_workers=3, this run has 2: set it back"):
        load_state(num_workers=3, num_ranks=1)


def test_other_data_parallel_ranks_are_refused_by_name(load_state):
    with pytest.raises(ConfigError, match="had data-parallel size 4, this run has 1 "):
        load_state(num_workers=2, num_ranks=4)


def test_an_empty_validation_split_says_what_to_do():
    from training.data.module import RepeatedLoader

    with pytest.raises(RuntimeError, match=r"--split 8,1,1\) or set trainer\.val_every=0"):
        next(iter(RepeatedLoader(lambda: iter(()))))


def test_every_validation_starts_at_the_beginning():
    from training.data.module import RepeatedLoader

    loader = RepeatedLoader(lambda: iter((1, 2, 3)))
    for _ in range(2):
        batches = iter(loader)
        assert [next(batches) for _ in range(5)] == [1, 2, 3, 1, 2]
