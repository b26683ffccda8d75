"""M-RoPE's angles: Megatron's, and exact where float32 products of matrices are not."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dct_vl.compat import activate

activate()

from megatron.core.models.common.embeddings.rotary_pos_embedding import (  # noqa: E402
    MultimodalRotaryEmbedding,
)

from dct_vl.model.families.qwen_vl.model import MultimodalAngles  # noqa: E402

SECTION = [16, 24, 24]
MATRIX_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}


class Operators(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def angles(kind: type[MultimodalRotaryEmbedding]) -> tuple[torch.Tensor, set[str]]:
    rotary = kind(kv_channels=128, rotary_percent=1.0, rotary_base=1_000_000)
    ids = torch.randint(0, 5000, (3, 2, 40), generator=torch.Generator().manual_seed(0))
    with Operators() as operators:
        return rotary(ids, list(SECTION)), operators.seen


def test_the_same_angles_without_a_matrix_product():
    expected, stock = angles(MultimodalRotaryEmbedding)
    got, seen = angles(MultimodalAngles)
    assert got.shape == (40, 2, 1, 128)
    assert got.is_contiguous()
    assert torch.equal(got, expected)
    assert stock & MATRIX_PRODUCTS
    assert not seen & MATRIX_PRODUCTS


def test_the_model_computes_its_angles_so(build_module):
    assert type(build_module("pixel").language_model.rotary_pos_emb) is MultimodalAngles


@pytest.mark.parametrize("folder", ["tiny_model", "tiny_model_25"])
def test_angles_keep_float32_in_a_bf16_model(request, build_module, folder):
    """Training and answers turn the whole model into bf16 once it is built."""
    module = build_module("pixel", request.getfixturevalue(folder))
    positions = torch.tensor([[0.0, 0.0], [37.0, 23.5]])
    ids = torch.tensor([[[40, 3001]]] * 3)
    section = module.language_model.mrope_section
    before = (
        module.vision_model._rotary(positions),
        module.language_model.rotary_pos_emb(ids, section),
    )
    module.bfloat16()
    after = (
        module.vision_model._rotary(positions),
        module.language_model.rotary_pos_emb(ids, section),
    )
    for kept, exact in zip(after, before, strict=True):
        assert kept.dtype == torch.float32
        assert torch.equal(kept, exact)
