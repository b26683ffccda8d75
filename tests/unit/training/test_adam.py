"""AdamW's lists, made once, give the same updates."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch

from dct_vl.compat import activate

activate()

from dct_vl.training.optim.adam import copy_at_once, remember_lists  # noqa: E402
from dct_vl.training.optim.speed import use_one_kernel  # noqa: E402

OPTIONS = {"lr": 0.1, "weight_decay": 0.01, "betas": (0.9, 0.95)}


def twins():
    torch.manual_seed(0)
    plain = [torch.randn(4, requires_grad=True), torch.randn(2, 3, requires_grad=True)]
    fused = copy.deepcopy(plain)
    one = torch.optim.AdamW([{"params": plain[:1]}, {"params": plain[1:], "lr": 0.2}], **OPTIONS)
    other = torch.optim.AdamW([{"params": fused[:1]}, {"params": fused[1:], "lr": 0.2}], **OPTIONS)
    for adam in (one, other):
        use_one_kernel(adam)
    return plain, one, fused, other


def draw_gradients(plain, fused):
    for a, b in zip(plain, fused, strict=True):
        a.grad = torch.randn_like(a)
        b.grad = a.grad.clone()


@pytest.mark.parametrize("event", ["none", "a gradient is missing", "a checkpoint is loaded"])
def test_updates_are_those_of_lists_made_anew(event):
    plain, one, fused, other = twins()
    stock, calls = other._init_group, []
    other._init_group = lambda group, *lists: calls.append(1) or stock(group, *lists)
    remember_lists(other)
    for step in range(5):
        draw_gradients(plain, fused)
        if step == 2 and event == "a gradient is missing":
            plain[0].grad = fused[0].grad = None
        if step == 2 and event == "a checkpoint is loaded":
            for adam in (one, other):
                adam.load_state_dict(copy.deepcopy(one.state_dict()))
        one.step()
        other.step()
        assert torch.equal(plain[0], fused[0])
        assert torch.equal(plain[1], fused[1])
    assert one.state_dict()["state"][1]["step"] == other.state_dict()["state"][1]["step"] == 5
    extra = {"none": 0, "a gradient is missing": 1, "a checkpoint is loaded": 2}
    assert len(calls) == 2 + extra[event], "lists were made in other steps than the first"


def test_state_that_a_checkpoint_has_replaced_is_not_held():
    _, _, parameters, adam = twins()
    remember_lists(adam)
    draw_gradients(parameters, parameters)
    adam.step()
    before = [weakref.ref(adam.state[parameter]["exp_avg"]) for parameter in parameters]
    adam.load_state_dict(copy.deepcopy(adam.state_dict()))
    adam.step()
    gc.collect()
    assert [held() for held in before] == [None, None]


def test_other_optimizers_copy_as_they_do():
    assert not copy_at_once(object())
