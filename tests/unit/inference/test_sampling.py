"""Drawn tokens: transformers' filters, the right shares, and streams of their own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from dct_vl.inference.sampling import Sampling, TokenChooser, draw


def shares(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities (V,) by transformers' own filters."""
    scores = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return scores.softmax(dim=-1)[0]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.2, 3),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.05, 1),
)
def test_tokens_come_with_the_shares_of_transformers(seed, temperature, top_k, top_p):
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(1, 12, generator=generator, dtype=torch.float64)
    expected = shares(logits, sampling)
    number = 4000
    draws = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    tokens = draw(logits.expand(number, -1), draws, sampling)
    found = torch.bincount(tokens, minlength=12) / number
    # evenly spread draws meet every share to one draw at either end
    assert (found - expected).abs().max() <= 2 / number


def test_the_largest_draw_meets_a_token_that_may_be_drawn():
    logits = torch.tensor([[0.0, 0.0, -30.0]])
    almost_one = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert draw(logits, almost_one, Sampling(temperature=1, top_p=0.9)).item() == 1


def test_a_row_draws_the_same_in_any_company():
    sampling = Sampling(temperature=1.0, seed=7)
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    together = TokenChooser(sampling, ["a", "b", "c"])
    alone = TokenChooser(sampling, ["b"])
    for _ in range(5):
        assert together(logits)[1] == alone(logits[1:2])[0]
    keys = TokenChooser(sampling, ["a", "b"])
    drawn = torch.stack([keys(logits[:1].expand(2, -1)) for _ in range(8)])
    assert (drawn[:, 0] != drawn[:, 1]).any(), "each key has a stream of its own"
    other = TokenChooser(Sampling(temperature=1.0, seed=8), ["a"])
    again = TokenChooser(sampling, ["a"])
    pairs = [(other(logits[:1]), again(logits[:1])) for _ in range(8)]
    assert any(first != second for first, second in pairs), "so has each seed"


def test_without_a_temperature_the_likeliest_token_is_taken():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    assert TokenChooser(Sampling(), ["a", "b"])(logits).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_k": -2}, "top_k is -2"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_settings_without_a_token_to_draw_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**wrong)
