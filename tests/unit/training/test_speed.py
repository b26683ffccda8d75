"""The optimizer's shortcuts give what they replace."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dct_vl.compat import activate

activate()

from megatron.core import utils  # noqa: E402
from megatron.core.optimizer import clip_grads, optimizer  # noqa: E402

from dct_vl.errors import ConfigError  # noqa: E402
from dct_vl.model.attention import have_cudnn_attention  # noqa: E402
from dct_vl.runs.config.schema import SpeedConfig  # noqa: E402
from dct_vl.training.optim.adam import PendingScale  # noqa: E402
from dct_vl.training.optim.speed import (  # noqa: E402
    SpeedUp,
    describe,
    resolve_speed,
    torch_optimizers,
    use_instead_of_stand_ins,
    use_one_kernel,
)

OPTIONS = {"lr": 0.1, "weight_decay": 0.01, "betas": (0.9, 0.95)}


def twins() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    torch.manual_seed(0)
    plain = [torch.randn(4, requires_grad=True), torch.randn(2, 3, requires_grad=True)]
    return plain, copy.deepcopy(plain)


def draw_gradients(plain: list[torch.Tensor], fused: list[torch.Tensor]) -> None:
    for a, b in zip(plain, fused, strict=True):
        a.grad = torch.randn_like(a)
        b.grad = a.grad.clone()


def test_open_switches_follow_cuda():
    assert not any(vars(resolve_speed(SpeedConfig())).values())
    assert resolve_speed(SpeedConfig(fused_layers=True)).fused_layers
    with pytest.raises(ConfigError, match="nvidia-cudnn-frontend"):
        resolve_speed(SpeedConfig(cudnn_attention=True))
    with pytest.raises(ConfigError, match="needs CUDA"):
        resolve_speed(SpeedConfig(recompute=True))


@pytest.mark.parametrize(("found", "is_used"), [("1.9.0", False), ("1.13.0", True), (None, False)])
def test_packages_of_cudnn_that_are_too_old_are_left_alone(monkeypatch, found, is_used):
    def version(name: str) -> str:
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert have_cudnn_attention.__wrapped__() == is_used


def test_the_choice_of_layers_is_said():
    off = resolve_speed(SpeedConfig())
    assert describe(off, "local") == (
        "layer_spec=local, torch's SDPA; speed switches that are on: none"
    )
    some = resolve_speed(SpeedConfig(fused_layers=True, answer_loss=True))
    assert describe(some, "te").endswith(
        "Transformer Engine's attention; speed switches that are on: fused_layers, answer_loss"
    )
    with_cudnn = replace(off, cudnn_attention=True)
    assert "cuDNN's attention in packs" in describe(with_cudnn, "local")


def test_stand_ins_are_replaced_where_megatron_uses_them(monkeypatch):
    pending = PendingScale()
    monkeypatch.setattr(clip_grads, "l2_norm_impl", max)
    assert not use_instead_of_stand_ins(pending.l2_norm, pending.clip_gradients)
    monkeypatch.setattr(clip_grads, "l2_norm_impl", utils.local_multi_tensor_l2_norm)
    stock = optimizer.clip_grad_by_total_norm_fp32
    monkeypatch.setattr(optimizer, "clip_grad_by_total_norm_fp32", stock)
    assert use_instead_of_stand_ins(pending.l2_norm, pending.clip_gradients)
    assert clip_grads.l2_norm_impl == pending.l2_norm
    # a second run in this process would otherwise clip nothing: the first one's optimizer is gone
    second = PendingScale()
    assert use_instead_of_stand_ins(second.l2_norm, second.clip_gradients)
    assert optimizer.clip_grad_by_total_norm_fp32 == second.clip_gradients
    # and so would a third one without the kernel
    SpeedUp(resolve_speed(SpeedConfig(fused_optimizer=False))).on_train_start(
        SimpleNamespace(optimizers=[], is_global_zero=False), None
    )
    assert clip_grads.l2_norm_impl is utils.local_multi_tensor_l2_norm
    assert optimizer.clip_grad_by_total_norm_fp32 is clip_grads.clip_grad_by_total_norm_fp32


def test_a_frozen_stage_has_no_optimizer_to_speed_up():
    """Its groups are those of the other stages, empty: there is no device to read off them."""
    some, none = (
        SimpleNamespace(optimizer=torch.optim.AdamW([{"params": p}, {"params": []}]))
        for p in ([torch.zeros(2, requires_grad=True)], [])
    )
    both = SimpleNamespace(chained_optimizers=[none, some, SimpleNamespace(optimizer=None)])
    assert list(torch_optimizers(SimpleNamespace(mcore_optimizer=both))) == [some.optimizer]


@pytest.mark.parametrize("loaded", [False, True])
def test_one_kernel_updates_as_torchs_default(loaded):
    plain, fused = twins()
    one, other = torch.optim.AdamW(plain, **OPTIONS), torch.optim.AdamW(fused, **OPTIONS)
    if not loaded:
        use_one_kernel(other)
    for step in range(4):
        draw_gradients(plain, fused)
        if loaded and step == 2:
            use_one_kernel(other)
            other.load_state_dict(copy.deepcopy(one.state_dict()))  # brings its own options
        one.step()
        other.step()
    torch.testing.assert_close(plain, fused)
    assert all(group["fused"] for group in other.param_groups)


def test_a_checkpoint_does_not_bring_the_kernel_back():
    plain, fused = twins()
    one, other = torch.optim.AdamW(plain, **OPTIONS), torch.optim.AdamW(fused, **OPTIONS)
    use_one_kernel(one)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert other.param_groups[0]["fused"]
    SpeedUp(resolve_speed(SpeedConfig(fused_optimizer=False))).on_train_start(
        SimpleNamespace(optimizers=[SimpleNamespace(optimizer=other)], is_global_zero=True), None
    )
    assert [group["fused"] for group in other.param_groups] == [None]


def test_scaled_in_the_kernel_as_in_passes_of_their_own():
    """Two steps of: sum over 7 tokens → mean → norm → clip to 1 → AdamW."""
    plain, fused = twins()
    one = torch.optim.AdamW(plain, **OPTIONS)
    # an optimizer a part, stepped one after the other
    others = [torch.optim.AdamW([p], **OPTIONS) for p in fused]
    pending = PendingScale()
    for other in others:
        use_one_kernel(other)
    pending.attach(others)
    for _ in range(2):
        draw_gradients(plain, fused)
        grads = [p.grad for p in plain]
        torch._foreach_mul_(grads, 1 / 7)
        expected, _ = utils.local_multi_tensor_l2_norm(0, None, [grads], False)
        coefficient = 0.1 / (float(expected) + 1e-6)
        assert coefficient < 1
        torch._foreach_mul_(grads, coefficient)
        one.step()

        pending.scale_gradients(torch.tensor(1 / 7))
        got, _ = pending.l2_norm(0, None, [[p.grad for p in fused]], False)
        torch.testing.assert_close(got, expected)
        for p in fused:
            pending.clip_gradients([p], max_norm=0.1, total_norm=float(expected))
        for other in others:
            other.step()
        torch.testing.assert_close(plain, fused, rtol=1e-6, atol=1e-7)
    assert (pending.tokens, pending.clip) == (1.0, 1.0)
    pending.clip_gradients(fused, max_norm=1.0, total_norm=0.5)
    assert pending.clip == 1.0, "gradients below the bound stay"
