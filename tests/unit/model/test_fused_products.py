"""Products whose weights' gradients go to Megatron's sums, and whose activations are made again."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dct_vl.model.fused import pieces
from dct_vl.model.fused.linear_cross_entropy import linear_cross_entropy
from dct_vl.model.fused.products import activated_product, product

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def parameter(*shape: int, dtype: torch.dtype = torch.float32, summed: bool = False):
    made = torch.randn(shape).to(dtype).requires_grad_()
    if summed:  # what Megatron's DDP gives a parameter
        made.main_grad = torch.ones(shape)
    return made


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_weights_gradient_is_added_to_its_sum(dtype):
    x, weight = parameter(3, 4, 8, dtype=dtype), parameter(6, 8, dtype=dtype, summed=True)
    wanted = torch.randn(3, 4, 6).to(dtype)
    expected = torch.autograd.grad((F.linear(x, weight) * wanted).sum(), (x, weight))
    for _ in range(2):  # micro batches
        (product(x, weight) * wanted).sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(x.grad, 2 * expected[0])
    close = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.1}
    torch.testing.assert_close(weight.main_grad, 1 + 2 * expected[1].float(), **close)


@pytest.mark.parametrize("case", ["no sum", "frozen", "sums in bf16", "no gradient"])
def test_other_weights_are_multiplied_as_usual(case):
    x, weight = parameter(4, 8), parameter(6, 8, summed=case != "no sum")
    if case == "frozen":
        weight.requires_grad_(False)
    if case == "sums in bf16":
        weight.main_grad = weight.main_grad.bfloat16()
    before = None if case == "no sum" else weight.main_grad.clone()
    with torch.set_grad_enabled(case != "no gradient"):
        result = product(x, weight)
    if case != "no gradient":
        result.sum().backward()
        assert (weight.grad is None) == (case == "frozen")
        torch.testing.assert_close(x.grad, weight.detach().sum(0).expand(4, 8))
    assert before is None or torch.equal(weight.main_grad, before)


def test_the_output_layers_gradient_is_added_to_its_sum():
    hidden, weight = parameter(20, 8), parameter(50, 8, summed=True)
    labels = torch.randint(50, (20,))
    expected = F.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    (grad,) = torch.autograd.grad(expected, weight)
    linear_cross_entropy(hidden, weight, labels, chunk=7).sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(weight.main_grad, 1 + grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("activation", ["swiglu", "quick_gelu"])
def test_activation_and_product_in_one(activation, with_bias, summed):
    width = 12 if activation == "swiglu" else 6
    x, weight = parameter(5, 2, width), parameter(4, 6, summed=summed)
    bias = parameter(width) if with_bias else None
    wanted = torch.randn(5, 2, 4)
    inputs = [x, weight, *([bias] if with_bias else [])]

    expected = F.linear(getattr(pieces, activation)(x, bias), weight)
    grads = torch.autograd.grad((expected * wanted).sum(), inputs)
    got = activated_product(x, bias, weight, activation)
    torch.testing.assert_close(got, expected)
    (got * wanted).sum().backward()
    torch.testing.assert_close(x.grad, grads[0])
    if with_bias:
        torch.testing.assert_close(bias.grad, grads[2])
    if summed:
        assert weight.grad is None
        torch.testing.assert_close(weight.main_grad, 1 + grads[1])
    else:
        torch.testing.assert_close(weight.grad, grads[1])


def test_the_activation_is_not_kept():
    x, weight = parameter(50, 1, 64), parameter(4, 32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, id):
        activated_product(x, None, weight, "swiglu")
    assert sorted(kept) == [weight.numel(), x.numel()]
