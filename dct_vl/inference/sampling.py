"""Settings of answers, and the choice of each row's next token: the likeliest or a drawn one.

Shape legend: B rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn; the default takes the likeliest one."""

    #: 0 takes the likeliest token
    temperature: float = 0.0
    #: only the k likeliest tokens; 0 for all
    top_k: int = 0
    #: only the likeliest tokens that together have this probability
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; expected 0 (greedy) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; expected 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected more than 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How answers are made, whatever makes them."""

    sampling: Sampling = field(default_factory=Sampling)
    #: an answer ends before the first of these texts
    stop: tuple[str, ...] = ()
    #: bounds of an image's area in pixels; None for the model's own
    min_pixels: int | None = None
    max_pixels: int | None = None


class TokenChooser:
    """Chooses for a batch of rows, one step after the other.

    Args:
        sampling: how.
        keys: one a row; see `draws_of`.
    """

    def __init__(self, sampling: Sampling, keys: Sequence[str]) -> None:
        self.sampling = sampling
        self._streams = [_stream(sampling.seed, key) for key in keys]

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """int64 (B,) of logits (B, V)."""
        draws = torch.tensor([stream.random() for stream in self._streams], dtype=torch.float64)
        return choose(logits, draws.to(logits.device), self.sampling)


def draws_of(sampling: Sampling, key: str, count: int) -> torch.Tensor:
    """float64 (count,) in [0, 1): what an answer's tokens are drawn with, one after the other.

    Every answer has a stream of its own, made from the seed and its key: what is drawn depends
    neither on the answers beside it nor on when it is asked.
    """
    return torch.from_numpy(_stream(sampling.seed, key).random(count))


def choose(logits: torch.Tensor, draws: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The likeliest tokens, or those that `draw` draws: int64 (B,) of logits (B, V)."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    return draw(logits, draws, sampling)


def draw(logits: torch.Tensor, draws: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Tokens at which the cumulative probability, likeliest first, passes the draws.

    Temperature, then top-k, then top-p, in the order of transformers.

    Args:
        logits: (B, V).
        draws: (B,) float64 in [0, 1).
        sampling: with a temperature above 0.

    Returns:
        int64 (B,).
    """
    # stable: equally likely tokens stand in the order of their ids everywhere
    ordered, ids = logits.double().sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        ordered, ids = ordered[:, : sampling.top_k], ids[:, : sampling.top_k]
    shares = (ordered / sampling.temperature).softmax(dim=-1)
    before = shares.cumsum(dim=-1) - shares
    shares = shares.masked_fill(before >= sampling.top_p, 0.0)
    reached = shares.cumsum(dim=-1)
    # rounding must not lead past the last token that has a share
    last = (shares > 0).sum(dim=-1, keepdim=True) - 1
    rank = (reached <= draws[:, None] * reached[:, -1:]).sum(dim=-1, keepdim=True)
    return ids.gather(-1, rank.minimum(last)).squeeze(-1)


def _stream(seed: int, key: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest[:16], "big")))
