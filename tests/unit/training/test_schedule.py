"""The schedule belongs to the run: neither a stop nor a checkpoint bends it."""

from __future__ import annotations

import math

import pytest
import torch


@pytest.fixture
def start(build_module):
    """start(num_steps, stop) → (rates of the steps done so far, scheduler)."""
    from dct_vl.training.optim.optimizer import RunLongCosine

    def make(num_steps: int, stop: int | None = None):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = RunLongCosine(num_steps=num_steps, warmup_steps=2, min_lr=0.1)
        # what MegatronStrategy does in its setup
        schedule.max_steps = stop or num_steps
        return optimizer, schedule.scheduler(None, optimizer)["lr_scheduler"]["scheduler"]

    return make


def rates(optimizer, scheduler, count: int) -> list[float]:
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def cosine(step: int, num_steps: int) -> float:
    share = (step - 2) / (num_steps - 2)
    return 0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2


def test_warmup_and_cosine(start):
    found = rates(*start(10), 10)
    assert found[:2] == pytest.approx([1 / 3, 2 / 3])
    assert found[2:] == pytest.approx([cosine(step, 10) for step in range(2, 10)])


def test_an_early_stop_changes_nothing(start):
    assert rates(*start(10, stop=5), 5) == rates(*start(10), 5)


@pytest.mark.parametrize("num_steps", [10, 20])
def test_a_resumed_run_follows_its_own_length(start, num_steps):
    """Also where the run before it was meant to be shorter."""
    optimizer, scheduler = start(10)
    rates(optimizer, scheduler, 6)
    again, resumed = start(num_steps)
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    expected = [cosine(step, num_steps) for step in range(6, 10)]
    assert rates(again, resumed, 4) == pytest.approx(expected)


def test_groups_keep_their_ratio_to_the_base_rate(build_module):
    """From the warmup to the floor, where NeMo's own schedule lets them all end alike."""
    from dct_vl.training.optim.optimizer import RunLongCosine

    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0 * m, "pre_lr_mult": m}
        for m in (5.0, 1.0, 0.0)
    ]
    optimizer = torch.optim.SGD(groups)
    schedule = RunLongCosine(num_steps=10, warmup_steps=2, min_lr=0.1)
    scheduler = schedule.scheduler(None, optimizer)["lr_scheduler"]["scheduler"]
    for step in range(12):
        fast, base, none = (group["lr"] for group in optimizer.param_groups)
        assert fast == pytest.approx(5 * base)
        assert none == 0.0
        if 2 <= step < 10:
            assert base == pytest.approx(cosine(step, 10))
        optimizer.step()
        scheduler.step()
    assert base == pytest.approx(0.1)
