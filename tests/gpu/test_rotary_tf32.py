"""M-RoPE's angles on the device where products of float32 matrices are allowed to be TF32."""

from __future__ import annotations

import gpu_device
import pytest
import torch

#: the 2B's
SECTION = [16, 24, 24]
SIZES = {"kv_channels": 128, "rotary_percent": 1.0, "rotary_base": 1_000_000}


@pytest.fixture(autouse=True)
def tf32():
    """As NVIDIA's containers set it."""
    with gpu_device.tf32(True):
        yield


@pytest.fixture
def ids():
    """(3, 2, 512) up to 30,000, all of them odd: TF32 keeps 11 bits."""
    spread = torch.linspace(0, 14_999, 512).long() * 2 + 1
    return torch.stack([torch.stack([spread, spread.flip(0)]), *(spread.repeat(2, 1),) * 2])


def test_angles_are_those_of_the_cpu(ids):
    from dct_vl.inference.loading import start_single_process
    from dct_vl.model.families.qwen_vl.model import MultimodalAngles

    start_single_process()
    on_cpu = MultimodalAngles(**SIZES)
    on_cpu.inv_freq = SIZES["rotary_base"] ** -(torch.arange(0, 128, 2) / 128)
    exact = on_cpu(ids, SECTION)
    own = MultimodalAngles(**SIZES)(ids.to("cuda"), SECTION)
    # powers may differ by a few last bits between devices, and with them the frequencies
    torch.testing.assert_close(own.cpu(), exact, rtol=2e-6, atol=0)
    on_cpu.inv_freq = on_cpu.inv_freq.to("cuda")
    same = on_cpu(ids.to("cuda"), SECTION)
    assert same.dtype == torch.float32
    assert torch.equal(same.cpu(), exact)


def test_angles_of_a_bf16_model_are_those_of_float32(tiny_model, ids):
    """Of both towers: a model turned into bf16 must not round its frequencies."""
    import gpu_packs as packs

    low, high = (packs.build(tiny_model, "pixel", dtype=d) for d in (torch.bfloat16, torch.float32))
    section = low.language_model.mrope_section
    found = low.language_model.rotary_pos_emb(ids.to("cuda"), section)
    assert torch.equal(found, high.language_model.rotary_pos_emb(ids.to("cuda"), section))
    places = torch.tensor([[0.0, 1.0], [37.0, 23.5]]).to("cuda")
    found = low.vision_model._rotary(places)
    assert found.dtype == torch.float32
    assert torch.equal(found, high.vision_model._rotary(places))
