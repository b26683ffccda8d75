"""What answers: an engine encodes requests and continues batches of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from dct_tokenizer import VisualTokenizer
from dct_vl.inference.generate.requests import Request
from dct_vl.inference.sampling import Sampling
from dct_vl.inputs.clips import VideoRules

#: is called after each token with the text of a batch's first answer so far
Watch = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How answers are made, whatever makes them."""

    sampling: Sampling = field(default_factory=Sampling)
    #: an answer ends before the first of these texts
    stop: tuple[str, ...] = ()
    #: bounds of a picture's area; None for the model's own
    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer."""

    text: str
    num_tokens: int
    #: False where it was cut off at its limit
    is_finished: bool
    num_visual_tokens: int
    #: what is wrong with videos of which only a part was seen
    damage: tuple[str, ...] = ()


class Engine(Protocol):
    """A model in this process, or this process's part of one."""

    #: may be changed between batches, but for the pixel bounds
    settings: AnswerSettings
    #: bounds of a picture's area that hold
    min_pixels: int
    max_pixels: int

    @property
    def visual(self) -> VisualTokenizer:
        """The tokenizer through which pictures are seen, under these bounds."""

    @property
    def video_rules(self) -> VideoRules:
        """What is taken of a video."""

    def identity(self) -> dict[str, Any]:
        """What makes two engines give the same answers, fit for JSON."""

    def encode(self, request: Request) -> Any:
        """What `answer` takes; may run in another thread.

        Raises:
            ValueError, OSError: the request cannot be answered.
        """

    def answer(self, encoded: Sequence[Any], watch: Watch | None = None) -> list[Reply]:
        """Answer a batch; where a model is divided, all its ranks call this together.

        What `watch` raises ends the answer and is raised here.
        """

    def score(self, encoded: Any, continuation: str) -> tuple[float, bool]:
        """Log-probability of a text after a prompt, and whether it is what greedy decoding says.

        Raises:
            ValueError: the text has no token.
        """


def score_of(logits: torch.Tensor, tokens: Sequence[int]) -> tuple[float, bool]:
    """Log-probability of tokens and whether each is the likeliest, from their logits (N, V)."""
    wanted = torch.tensor(tokens, device=logits.device)
    shares = logits.float().log_softmax(dim=-1)
    total = shares.gather(1, wanted[:, None]).sum()
    return float(total), bool((logits.argmax(dim=-1) == wanted).all())
