"""Run all clauses on a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from dct_tokenizer.base import VisualTokenizer
from dct_tokenizer.conformance import geometry_clauses, numeric_clauses

#: Bounds that keep the images of the suite small; a tokenizer's own bounds are policy, not form.
MIN_PIXELS, MAX_PIXELS = 784, 260_000

#: Name of a clause to its check; a check returns what it measured, or raises.
CLAUSES: dict[str, Callable[[VisualTokenizer], str]] = {
    "config": geometry_clauses.check_config,
    "plan": geometry_clauses.check_plan,
    "segments": geometry_clauses.check_segments,
    "positions": geometry_clauses.check_positions,
    "merge": geometry_clauses.check_merge,
    "start": numeric_clauses.check_start,
    "decode": numeric_clauses.check_decode,
    "still": numeric_clauses.check_still,
    "gradients": numeric_clauses.check_gradients,
    "determinism": numeric_clauses.check_determinism,
    "state": numeric_clauses.check_state,
    "precision": numeric_clauses.check_precision,
    "replicas": numeric_clauses.check_replicas,
    "export": numeric_clauses.check_export,
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of one clause on one tokenizer."""

    tokenizer: str
    clause: str
    passed: bool
    #: What was measured, or what is wrong.
    detail: str


def run_suite(
    tokenizer: VisualTokenizer, clauses: Iterable[str] = tuple(CLAUSES)
) -> Iterator[Verdict]:
    """One verdict per clause, in order. Any exception of a tokenizer is a failure of the clause."""
    small = replace(tokenizer, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    for clause in clauses:
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                detail, passed = CLAUSES[clause](small), True
        except Exception as error:
            detail, passed = f"{type(error).__name__}: {error}", False
        yield Verdict(tokenizer=tokenizer.name, clause=clause, passed=passed, detail=detail)
