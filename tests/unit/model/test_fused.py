"""Fused computations equal what they replace, values and gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dct_vl.model.fused.linear_cross_entropy import linear_cross_entropy


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def gradients(loss: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("chunk", [3, 7, 64])
@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
def test_linear_cross_entropy(chunk, keep_bytes):
    hidden = torch.randn(20, 8, requires_grad=True)
    weight = torch.randn(50, 8, requires_grad=True)
    labels = torch.randint(50, (20,))
    scale = torch.rand(20)
    expected = F.cross_entropy(hidden @ weight.T, labels, reduction="none")
    got = linear_cross_entropy(hidden, weight, labels, chunk=chunk, keep_bytes=keep_bytes)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(
        gradients((got * scale).sum(), hidden, weight),
        gradients((expected * scale).sum(), hidden, weight),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_linear_cross_entropy_of_no_tokens():
    hidden = torch.randn(0, 8, requires_grad=True)
    weight = torch.randn(50, 8, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.zeros(0, dtype=torch.long))
    grad_hidden, grad_weight = gradients(loss.sum(), hidden, weight)
    assert loss.shape == (0,)
    assert grad_hidden.shape == (0, 8)
    assert not grad_weight.any()


def test_linear_cross_entropy_of_frozen_weights():
    hidden = torch.randn(5, 8, requires_grad=True)
    weight = torch.randn(50, 8)
    labels = torch.randint(50, (5,))
    (ours,) = gradients(linear_cross_entropy(hidden, weight, labels).sum(), hidden)
    (theirs,) = gradients(F.cross_entropy(hidden @ weight.T, labels, reduction="sum"), hidden)
    torch.testing.assert_close(ours, theirs)


def test_linear_cross_entropy_over_two_ranks(tmp_path):
    script = Path(__file__).with_name("vocabulary_halves.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[3])}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "store")], env=environment
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]


@pytest.fixture(scope="module")
def batch(build_module):
    """Two rows of different lengths with a picture each, as the loader makes them."""
    import numpy as np

    from dct_tokenizer import build_tokenizer
    from dct_vl.inputs.batch import pad_batch
    from dct_vl.inputs.cells import encode_visual
    from dct_vl.inputs.chat import TokenizedChat, place_media
    from dct_vl.inputs.samples import EncodedChat

    visual = build_tokenizer("pixel", min_pixels=784, max_pixels=10**5)
    generator = np.random.default_rng(0)
    samples = []
    for number, side in enumerate((56, 140)):
        ids = tuple(int(i) for i in generator.integers(10, 200, size=9 + number))
        ids = (*ids[:2], 7, *ids[2:])
        answers = tuple(place > 5 for place in range(len(ids)))
        chat = TokenizedChat(input_ids=ids, is_answer=answers, media=("image",))
        plan = visual.plan(side, side)
        input_ids, is_answer, positions = place_media(chat, [7], [plan])
        frames = generator.integers(0, 256, (1, side, side, 3), dtype=np.uint8)
        samples.append(
            EncodedChat(
                __key__=str(number),
                __restore_key__=(),
                __subflavors__=None,
                input_ids=input_ids,
                is_answer=is_answer,
                position_ids=positions,
                visual=encode_visual(visual, [frames], [plan]),
            )
        )
    return pad_batch(samples, visual=visual, pad_to=None, pad_multiple=8)


def run(module, batch):
    """Losses, and the gradients of all parameters."""
    module.zero_grad()
    losses, mask = module(batch)
    (losses * mask).sum().backward()
    return losses * mask, {
        name: parameter.grad.clone()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def assert_same(module, one, other):
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=1e-6)
    assert one[1].keys() == other[1].keys() == dict(module.named_parameters()).keys()
    for name in one[1]:
        torch.testing.assert_close(one[1][name], other[1][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture(scope="module", params=["tiny_model", "tiny_model_25"])
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def reference(folder, build_module, batch):
    module = build_module("pixel", folder).train()
    return module, run(module, batch)


def test_fused_layers_change_nothing(folder, build_module, batch, reference):
    from dct_vl.model.fused.layer import FusedTransformerLayer

    module = build_module("pixel", folder, fused_layers=True).train()
    layers = [*module.vision_model.decoder.layers, *module.language_model.decoder.layers]
    assert all(isinstance(layer, FusedTransformerLayer) for layer in layers)
    assert all(layer._covers({"rotary_pos_emb": torch.zeros(1)}) for layer in layers)
    assert_same(module, run(module, batch), reference[1])


def test_products_through_megatrons_own_layers_change_nothing(
    folder, build_module, batch, reference
):
    """What more than one tensor-parallel rank takes: hooks make a single rank take it too."""
    module = build_module("pixel", folder, fused_layers=True).train()
    for part in module.modules():
        if type(part).__name__ in ("ColumnParallelLinear", "RowParallelLinear"):
            part.register_forward_pre_hook(lambda *_: None)
    assert_same(module, run(module, batch), reference[1])


def test_losses_of_the_answers_only(batch, reference):
    module, expected = reference
    answers = batch.with_answer_indices()
    assert torch.equal(answers.answer_indices, batch.loss_mask.flatten().nonzero().flatten())
    assert_same(module, run(module, answers), expected)
    assert_same(module, run(module, batch), expected)


def test_places_of_visual_tokens_are_known_beforehand(batch, reference):
    module, _ = reference
    places = (batch.input_ids == -200).flatten().nonzero().flatten()
    assert torch.equal(batch.visual.token_indices, places)
    with pytest.raises(ValueError, match="visual tokens"):
        run(module, replace(batch, visual=replace(batch.visual, token_indices=places[1:])))


def test_the_compiled_functions_are_the_written_ones(monkeypatch):
    """Only tensors on a CUDA device are sent through torch.compile."""
    from dct_vl.model.fused import pieces

    sent = []

    def record(function):
        sent.append(function)
        return function

    monkeypatch.setattr(torch, "compile", record)
    double = pieces.compiled_on_cuda(lambda x: 2 * x)
    assert double(torch.ones(())) == 2
    assert not sent


def test_a_step_asks_the_device_for_nothing(folder, build_module, batch):
    """Tensors without values raise where a number, a truth value or a place of them is wanted."""
    from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

    module = build_module("pixel", folder, fused_layers=True).train()
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # buffers
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(mode.from_tensor(parameter.detach()))
    known = batch.with_windows(8).with_answer_indices().map_tensors(mode.from_tensor)
    with mode:
        losses, mask = module(known)
        (losses * mask).sum().backward()
        with pytest.raises(DynamicOutputShapeException):
            known.with_answer_indices()
