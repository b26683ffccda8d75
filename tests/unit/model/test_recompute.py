"""Recomputed layers are trained as others are, also behind parts that are frozen."""

from __future__ import annotations

import contextlib

import pytest
import torch

from dct_vl.model.parts import LoraConfig

ADAPTED = LoraConfig(target_modules=["*.layers.*.linear_qkv"], rank=4, alpha=8)


@pytest.fixture(autouse=True)
def _no_cuda_generators(monkeypatch):
    """Megatron's checkpointing keeps and restores CUDA's, which are not there."""
    from megatron.core.tensor_parallel import random

    monkeypatch.setattr(random, "_get_all_rng_states", tuple)
    monkeypatch.setattr(random, "_set_all_rng_states", lambda: None)
    monkeypatch.setattr(random, "_fork_rng", contextlib.nullcontext)


def gradients(module, *, recompute: bool, packed: bool) -> dict[str, torch.Tensor]:
    """Of all trained parameters, with one picture of 4 × 4 patches in 12 tokens."""
    from dct_vl.inputs.batch import Batch, Segments, VisualInputs
    from dct_vl.inputs.chat import VISUAL_TOKEN_INDEX

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (1, 12), generator=generator)
    ids[0, 3:7] = VISUAL_TOKEN_INDEX
    # units of four cells in a row; Qwen2.5-VL looks for its windows among them
    units = [(row, column) for row in (0, 2) for column in (0, 2)]
    places = [(row + i, column + j) for row, column in units for i in (0, 1) for j in (0, 1)]
    for block in (module.vision_model.decoder, module.language_model.decoder):
        block.config.recompute_granularity = "full" if recompute else None
        block.config.recompute_method, block.config.recompute_num_layers = "uniform", 1
    segments = Segments.of([8, 4]) if packed else None
    module.zero_grad()
    labels = torch.randint(0, 256, (1, 12), generator=generator)
    visual = VisualInputs(
        cells=torch.randint(0, 256, (16, 1, 3, 14, 14), generator=generator).to(torch.uint8),
        positions=torch.tensor(places, dtype=torch.float32),
        segments=Segments.of([16]),
        grids=torch.tensor([[1, 4, 4]]),
        token_indices=torch.arange(3, 7),
    )
    losses, _ = module(
        Batch(
            input_ids=ids,
            position_ids=torch.arange(12).expand(3, 1, 12),
            segments=segments,
            visual=visual,
            labels=labels,
        )
    )
    losses.sum().backward()
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model", ["tiny_model", "tiny_model_25"])
@pytest.mark.parametrize(
    ("trained", "lora"),
    [
        ({"front_end", "vision", "projector", "language"}, False),
        ({"vision"}, False),
        ({"projector"}, True),
        (set(), True),
    ],
    ids=["full", "vision alone", "adapters and projector", "adapters alone"],
)
def test_what_is_trained_gets_its_gradients(request, build_module, model, trained, lora):
    from dct_vl.model.lora import apply_lora
    from dct_vl.model.parts import freeze_parts

    module = build_module("pixel", request.getfixturevalue(model), fused_layers=True).train()
    if lora:
        apply_lora(module, ADAPTED)
    freeze_parts(module, trained)
    for packed in (False, True):
        expected = gradients(module, recompute=False, packed=packed)
        assert expected.keys() == {n for n, p in module.named_parameters() if p.requires_grad}
        got = gradients(module, recompute=True, packed=packed)
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
