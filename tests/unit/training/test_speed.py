"""The optimizer's shortcuts give what they replace."""

from __future__ import annotations

import copy

import pytest
import torch

from training.compat import activate

activate()

from megatron.core import utils  # noqa: E402

from training.config.schema import SpeedConfig  # noqa: E402
from training.speed import (  # noqa: E402
    foreach_l2_norm,
    foreach_scale,
    resolve_speed,
    use_foreach_norm,
    use_one_kernel,
)


def test_open_switches_follow_cuda():
    assert not any(vars(resolve_speed(SpeedConfig())).values())
    assert resolve_speed(SpeedConfig(fused_layers=True)).fused_layers


def test_norm_and_scale():
    tensors = [torch.randn(n) for n in (3, 5, 7)]
    ours, _ = foreach_l2_norm(0, None, [tensors], False)
    theirs, _ = utils.local_multi_tensor_l2_norm(0, None, [tensors], False)
    torch.testing.assert_close(ours, theirs)
    expected = [0.5 * t for t in tensors]
    foreach_scale(0, None, [tensors, tensors], 0.5)
    torch.testing.assert_close(tensors, expected)
    others = [torch.zeros_like(t) for t in tensors]
    foreach_scale(0, None, [tensors, others], 2.0)
    torch.testing.assert_close(others, [2 * t for t in expected])


def test_norm_and_scale_are_put_where_megatron_uses_its_own(monkeypatch):
    from megatron.core.optimizer import clip_grads

    monkeypatch.setattr(clip_grads, "l2_norm_impl", utils.local_multi_tensor_l2_norm)
    monkeypatch.setattr(clip_grads, "multi_tensor_scale_impl", utils.local_multi_tensor_scale)
    use_foreach_norm()
    assert clip_grads.l2_norm_impl is foreach_l2_norm
    monkeypatch.setattr(clip_grads, "l2_norm_impl", max)
    use_foreach_norm()
    assert clip_grads.l2_norm_impl is max


@pytest.mark.parametrize("loaded", [False, True])
def test_one_kernel_updates_as_torchs_default(loaded):
    torch.manual_seed(0)
    plain = [torch.randn(4, requires_grad=True), torch.randn(2, 3, requires_grad=True)]
    fused = copy.deepcopy(plain)
    options = {"lr": 0.1, "weight_decay": 0.01, "betas": (0.9, 0.95)}
    one, other = torch.optim.AdamW(plain, **options), torch.optim.AdamW(fused, **options)
    if not loaded:
        use_one_kernel(other)
    for step in range(4):
        for a, b in zip(plain, fused, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        if loaded and step == 2:
            other.load_state_dict(copy.deepcopy(one.state_dict()))
            use_one_kernel(other)
            other.load_state_dict(copy.deepcopy(one.state_dict()))  # as a checkpoint sets options
        one.step()
        other.step()
        assert all(group["fused"] for group in other.param_groups) or loaded
    torch.testing.assert_close(plain, fused)
    assert all(group["fused"] for group in other.param_groups)
