"""Metrics of one short answer against true ones: exact match, ANLS, relaxed accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein


def exact_match(answer: str, references: Sequence[str], *, ignore_case: bool = True) -> float:
    """1.0 where the answer is one of the true ones but for outer space (and case), else 0.0."""
    given = answer.strip()
    truths = [reference.strip() for reference in references]
    if ignore_case:
        given, truths = given.lower(), [truth.lower() for truth in truths]
    return float(given in truths)


def anls(answer: str, references: Sequence[str], threshold: float = 0.5) -> float:
    """Normalised Levenshtein similarity to the closest true answer in [0, 1], 0 below `threshold`.

    DocVQA (arXiv 2007.00398) after Biten et al. 2019 (arXiv 1907.00490, equation 1); its mean over
    questions is ANLS. Case and runs of spaces do not count. A similarity of exactly 0.5 counts, as
    in the challenge's evaluation script.
    """
    given = " ".join(answer.lower().split())
    best = max(
        (
            Levenshtein.normalized_similarity(given, " ".join(truth.lower().split()))
            for truth in references
        ),
        default=0.0,
    )
    return best if best >= threshold else 0.0


def relaxed_match(answer: str, references: Sequence[str], tolerance: float = 0.05) -> float:
    """1.0 where a number is within `tolerance` of the true one or a text equal, else 0.0.

    ChartQA (arXiv 2203.10244, end of section 5.1). "94%" reads as 0.94; a true value of 0 has no
    relative error and is compared as text; case does not count.
    """
    return float(any(_is_close(answer.strip(), truth.strip(), tolerance) for truth in references))


def _is_close(answer: str, truth: str, tolerance: float) -> bool:
    given, true = _number(answer), _number(truth)
    if given is None or not true:
        return answer.lower() == truth.lower()
    return abs(given - true) / abs(true) <= tolerance


def _number(text: str) -> float | None:
    percent = text.endswith("%")
    try:
        value = float(text.rstrip("%"))
    except ValueError:
        return None
    return value / 100 if percent else value
