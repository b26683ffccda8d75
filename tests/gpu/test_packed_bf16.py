"""A sample's loss in a pack, in bf16 on the device: that of a padded row, and of float32."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

#: preset and way to compute it: a layer spec, or the local one with fused, compiled layers; layers
#: of hybrid are fused too, and not compiled
WAYS = [
    (preset, way)
    for way in ("local", "compiled", "cudnn", "te", "hybrid")
    for preset in ("pixel", "dct28_420")
]
#: bf16 has 8 bits: its steps are 0.4 %, and errors of many roundings largely cancel
LOSS, NORM = 2e-2, 5e-2


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of the samples of `gpu_packs.PACKS`, in order."""

    #: mean losses
    alone: list[float]
    together: list[float]
    #: `together` with other text and pixels in two of the samples
    beside_others: list[float]
    #: gradient norms of the mean over all of them
    norm_alone: float
    norm_together: float


@pytest.fixture(scope="module", params=WAYS, ids=["-".join(way) for way in WAYS])
def measured(request, tiny_model, need_spec) -> tuple[str, Measured]:
    preset, way = request.param
    need_spec(way)
    if way == "cudnn":
        from dct_vl.model.attention import have_cudnn_attention

        if not have_cudnn_attention():
            pytest.skip("no nvidia-cudnn-frontend, or no GPU of compute capability 9.0")
    return preset, measure(tiny_model, preset, way)


@functools.cache
def measure(folder: Path, preset: str, way: str) -> Measured:
    """Forward and backward with gradients throughout: without them other kernels are compiled."""
    import gpu_packs as packs
    import torch

    from dct_vl.model.attention import prefer_cudnn
    from dct_vl.model.fused.pieces import allow_compiling

    allow_compiling(way == "compiled")
    prefer_cudnn(way == "cudnn")
    encoder = packs.make_encoder(folder, preset)
    samples = packs.make_samples(encoder)
    module = packs.build(
        folder,
        preset,
        dtype=torch.bfloat16,
        layer_spec="local" if way in ("compiled", "cudnn") else way,
        fused_layers=way in ("compiled", "hybrid"),
    )

    def norm(means: torch.Tensor) -> float:
        module.zero_grad(set_to_none=True)
        means.mean().backward()
        gradients = [p.grad for p in module.parameters()]
        assert all(gradient is not None for gradient in gradients)
        return float(torch.stack([gradient.float().norm() for gradient in gradients]).norm())

    alone = packs.means_of_padded(packs.losses(module, packs.padded(encoder, samples)), samples)
    norm_alone = norm(alone)
    batch = packs.packed(encoder, samples)
    together = packs.means_of_packed(packs.losses(module, batch), samples)
    norm_together = norm(together)
    changed = batch.map_tensors(torch.clone)
    # the first sample is text alone; the last cells are of the last sample's second picture
    changed.input_ids[0, : len(samples[packs.TEXT].input_ids)] = 5
    cells = changed.visual.cells
    cells[-4:] = 255 - cells[-4:]
    beside_others = packs.means_of_packed(packs.losses(module, changed), samples)
    return Measured(
        alone=alone.tolist(),
        together=together.tolist(),
        beside_others=beside_others.tolist(),
        norm_alone=norm_alone,
        norm_together=norm_together,
    )


def test_a_pack_has_text_first_and_between_pictures_and_videos(tiny_model):
    """What the other tests rest on."""
    import gpu_packs as packs

    for preset in packs.PRESETS:
        encoder = packs.make_encoder(tiny_model, preset)
        samples = packs.make_samples(encoder)
        grids = [[plan.grid_thw for plan in sample.visual.plans] for sample in samples]
        assert [len(of_sample) for of_sample in grids] == [2, 0, 1, 2]
        assert grids[packs.TWO][0] != grids[packs.TWO][1]
        assert grids[packs.CLIP][0][0] > 1, "a video of one slice of time"
        batch = packs.packed(encoder, samples)
        used = [sum(len(samples[number].input_ids) for number in pack) for pack in packs.PACKS]
        assert all(0 < size < packs.LENGTH for size in used), "padding is a segment too"
        assert len(batch.segments.cu_seqlens) == 2 * (4 + 1) + 1


def test_losses_and_gradient_norms_equal_those_of_padded_rows(measured):
    _, found = measured
    assert found.together == pytest.approx(found.alone, rel=LOSS)
    assert found.norm_together == pytest.approx(found.norm_alone, rel=NORM)


def test_losses_equal_those_of_float32_on_the_cpu(
    measured, exact_losses: Callable[[], dict[str, list[float]]]
):
    preset, found = measured
    assert found.alone == pytest.approx(exact_losses()[preset], rel=LOSS)
    assert found.together == pytest.approx(exact_losses()[preset], rel=LOSS)


def test_a_sample_does_not_see_its_neighbours(measured):
    """Others in the same places leave its loss as it is, to the last bit: its rows of each product
    and its segment of each attention are computed as before.
    """
    _, found = measured
    same = [a == b for a, b in zip(found.together, found.beside_others, strict=True)]
    assert same == [False, True, True, True, True, True, True, False], found


def test_samples_have_losses_of_their_own(exact_losses):
    """Further apart than what passes as equal, so that exchanged ones would be seen."""
    for values in exact_losses().values():
        distinct = sorted(set(values))
        assert len(distinct) == 4
        gaps = [b / a - 1 for a, b in pairwise(distinct)]
        assert max(gaps) > 2 * LOSS
