"""Samples are divided into packs: all of them, once, within bounds, tightly and evenly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dct_vl.errors import ConfigError
from dct_vl.runs.checks import check_packing
from dct_vl.runs.config.schema import DataConfig, RunConfig
from dct_vl.training.data.packing import PackBounds, select_packs

BOUNDS = PackBounds(max_tokens=100, max_patches=300)
SAMPLES = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 300)), max_size=60)


def cambrian_like(count: int, seed: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and patches of short questions (60 to 200 text tokens), conversations of up to 1500,
    one in ten without a picture, the others with one to three of 100 to 324 visual tokens.
    """
    random = np.random.default_rng(seed)
    kind = random.random(count)
    short, long = random.integers(60, 201, count), random.integers(300, 1501, count)
    middle = random.lognormal(5.7, 0.5, count).astype(int)
    text = np.where(kind < 0.8, short, np.where(kind < 0.93, middle, long))
    pictures = np.where(random.random(count) < 0.04, random.integers(2, 4, count), 1)
    visual = pictures * random.integers(100, 325, count) * (random.random(count) < 0.9)
    fits = text + visual <= longest
    return (text + visual)[fits], 4 * visual[fits]


def fill(packs: list[list[int]], tokens: np.ndarray, length: int) -> float:
    return tokens.sum() / (len(packs) * length)


@settings(deadline=None)
@given(SAMPLES)
def test_every_sample_once_and_no_pack_over_its_bounds(samples):
    tokens, patches = [t for t, _ in samples], [p for _, p in samples]
    packs = select_packs(tokens, patches, BOUNDS)
    assert sorted(index for pack in packs for index in pack) == list(range(len(samples)))
    for pack in packs:
        assert pack == sorted(pack) != []
        assert sum(tokens[index] for index in pack) <= BOUNDS.max_tokens
        assert sum(patches[index] for index in pack) <= BOUNDS.max_patches
    assert select_packs(tokens, patches, BOUNDS) == packs


@settings(deadline=None)
@given(SAMPLES)
def test_no_pack_could_be_emptied_into_another(samples):
    """Two packs that would fit into one are one."""
    tokens, patches = [t for t, _ in samples], [p for _, p in samples]
    packs = select_packs(tokens, [0] * len(samples), BOUNDS)
    sizes = sorted(sum(tokens[index] for index in pack) for pack in packs)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > BOUNDS.max_tokens
    work = [sum(patches[i] for i in p) for p in select_packs([1] * len(samples), patches, BOUNDS)]
    assert len(work) < 2 or sum(sorted(work)[:2]) > BOUNDS.max_patches or len(samples) > 100


@pytest.mark.parametrize(
    ("length", "buffer"), [(2048, 256), (2048, 512), (4096, 512), (4096, 1000)]
)
def test_a_usual_mix_fills_97_of_100_places(length, buffer):
    bounds = PackBounds(max_tokens=length, max_patches=4 * length)
    for seed in range(5):
        tokens, patches = cambrian_like(buffer, seed, length)
        packs = select_packs(tokens, patches, bounds)
        assert fill(packs, tokens, length) >= 0.97


def test_packs_take_the_vision_tower_equally_long():
    """Every rank packs its own samples: the slowest of eight is hardly slower than the mean."""
    tokens, patches = cambrian_like(512, 0, 4096)
    packs = select_packs(tokens, patches, PackBounds(max_tokens=4096, max_patches=4 * 4096))
    work = np.array([patches[pack].sum() for pack in packs])
    assert work.max() < 1.05 * work.mean()
    assert (work < 0.9 * work.mean()).sum() <= 1, "only what is left over may make a light pack"


def test_a_second_bound_is_kept_where_it_is_the_tighter_one():
    tokens, patches = cambrian_like(256, 1, 2048)
    bounds = PackBounds(max_tokens=2048, max_patches=2000)
    packs = select_packs(tokens, np.minimum(patches, 2000), bounds)
    work = [np.minimum(patches, 2000)[pack].sum() for pack in packs]
    assert max(work) <= 2000
    assert np.mean(work) > 0.85 * 2000


def test_heavy_and_light_packs_alternate():
    tokens, patches = [100] * 6, [0, 50, 100, 150, 200, 250]
    packs = select_packs(tokens, patches, BOUNDS)
    work = [patches[index] for pack in packs for index in pack]
    pairs = [a + b for a, b in zip(work[::2], work[1::2], strict=True)]
    assert max(pairs) - min(pairs) == 0


@pytest.mark.parametrize(("tokens", "patches"), [([101], [0]), ([1], [301])])
def test_what_fits_no_pack_is_refused(tokens, patches):
    with pytest.raises(ValueError, match="100 tokens and 300 patches"):
        select_packs(tokens, patches, BOUNDS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"packing_buffer_size": 0}, "data.packing_buffer_size is 0; expected at least 1"),
        ({"max_patches_per_pack": 0}, "data.max_patches_per_pack is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(data, message):
    run = RunConfig(data=DataConfig(packing=True, **data))
    with pytest.raises(ConfigError, match=message):
        check_packing(run)
    run.data.packing = False
    check_packing(run)
