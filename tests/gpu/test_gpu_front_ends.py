"""Front ends of all presets on the device against those in float32 on the CPU."""

from __future__ import annotations

import copy

import gpu_device
import pytest
import torch

from dct_tokenizer import build_tokenizer
from dct_tokenizer.conformance.inputs import clip_of, frames_per_cell, prepared
from dct_tokenizer.registry import list_presets

WIDTH = 64
#: of the norm; bf16 rounds inputs and weights to 8 bits, float32 sums come in another order
TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-4}


def relative(value: torch.Tensor, exact: torch.Tensor) -> float:
    """Norm of the difference by the norm of the exact value."""
    assert value.device.type == gpu_device.KIND
    return float((value.cpu().double() - exact.double()).norm() / exact.double().norm())


@pytest.fixture(autouse=True)
def float32_products():
    """TF32 has 11 bits; the basis says that it costs as much as bf16."""
    with gpu_device.tf32(False):
        yield


@pytest.fixture(params=list_presets())
def visual(request):
    return build_tokenizer(request.param)


@pytest.fixture
def front_end(visual):
    """Away from its start, where many columns are 0."""
    generator = torch.Generator().manual_seed(2)
    made = visual.front_end(WIDTH, 0.02 * torch.randn(WIDTH, 3, 2, 14, 14, generator=generator))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    return made


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["bf16", "fp32"])
def test_cells_embed_as_on_the_cpu(visual, front_end, dtype):
    moved = copy.deepcopy(front_end).to(device=torch.device("cuda"), dtype=dtype)
    assert not gpu_device.elsewhere(moved)
    for frames in (1, frames_per_cell(visual)):
        _, cells = prepared(visual, clip_of(90, 130, frames))
        with torch.no_grad():
            exact, found = front_end(cells), moved(cells.to("cuda"))
        assert found.dtype == dtype
        assert relative(found, exact) < TOLERANCE[dtype]


def test_gradients_are_those_of_the_cpu(visual, front_end):
    moved = copy.deepcopy(front_end).to("cuda")
    _, cells = prepared(visual, clip_of(90, 130, frames_per_cell(visual)))
    for module, where in ((front_end, "cpu"), (moved, "cuda")):
        module(cells.to(where)).square().sum().backward()
    exact = dict(front_end.named_parameters())
    for name, parameter in moved.named_parameters():
        assert relative(parameter.grad, exact[name].grad) < TOLERANCE[torch.float32], name


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["bf16", "fp32"])
def test_what_comes_behind_the_merger_is_as_on_the_cpu(visual, dtype):
    crop = visual.post_merge()
    if crop is None:
        return  # most tokenizers have nothing there
    plans = [visual.plan(90, 130), visual.plan(140, 60)]
    grids = torch.tensor([plan.grid_thw for plan in plans])
    count = int(grids.prod(1).sum()) // 4
    features = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(3))
    found = crop.to("cuda")(features.to(device=torch.device("cuda"), dtype=dtype), grids)
    assert found.dtype == dtype
    assert len(found) == sum(plan.num_llm_tokens for plan in plans)
    assert relative(found, crop(features, grids)) < TOLERANCE[dtype]
