"""Megatron's layouts there and back, over all head geometries."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dct_vl.compat import activate

activate()

from dct_vl.model.families.qwen_vl.weights import Heads, recipe  # noqa: E402


@st.composite
def geometries(draw) -> Heads:
    groups = draw(st.integers(1, 4))
    return Heads(
        num_heads=groups * draw(st.integers(1, 4)),
        num_groups=groups,
        head_dim=draw(st.integers(1, 5)),
    )


#: Megatron's name → rows of each Hugging Face tensor, as a function of the heads
NAMES = {
    "language_model.decoder.layers.3.self_attention.linear_qkv.weight": "qkv",
    "language_model.decoder.layers.3.self_attention.linear_qkv.bias": "qkv",
    "vision_model.decoder.layers.0.self_attention.linear_qkv.weight": "fused",
    "vision_model.decoder.layers.0.self_attention.linear_qkv.bias": "fused",
    "language_model.decoder.layers.1.mlp.linear_fc1.weight": "gated",
    "vision_model.decoder.layers.1.mlp.linear_fc1.weight": "gated",
    "vision_model.decoder.layers.1.mlp.linear_fc1.bias": "gated",
    "vision_model.decoder.layers.1.mlp.linear_fc2.bias": "same",
    "language_model.decoder.layers.1.mlp.linear_fc2.weight": "same",
    "language_model.output_layer.weight": "same",
}


@pytest.mark.parametrize("name", NAMES)
@given(heads=geometries(), width=st.integers(1, 3), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_split_undoes_join(name, heads, width, seed):
    kind = NAMES[name]
    if kind == "fused":
        heads = Heads(
            num_heads=heads.num_heads, num_groups=heads.num_heads, head_dim=heads.head_dim
        )
    queries, keys = heads.num_heads * heads.head_dim, heads.num_groups * heads.head_dim
    rows = {
        "qkv": (queries, keys, keys),
        "fused": (3 * queries,),
        "gated": (queries, queries),
        "same": (queries,),
    }[kind]
    tail = () if name.endswith("bias") else (width,)
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn((n, *tail), generator=generator) for n in rows]
    heads = replace(heads, gated=".mlp." in name)
    how = recipe(name, heads, heads)
    full = how.join(*tensors)
    back = how.split(full)
    assert len(back) == len(how.sources) == len(tensors)
    for there, here in zip(tensors, back, strict=True):
        assert torch.equal(there, here)
    assert torch.equal(how.join(*back), full)
    if kind == "qkv" and heads.num_groups > 1:
        assert not torch.equal(full, torch.cat(tensors)), "the layouts must differ"
