"""POPE: does a model see objects that are not there?"""

from __future__ import annotations

import re
from collections.abc import Sequence


def says_yes(answer: str) -> bool:
    """How POPE (arXiv 2305.10355, evaluate.py) reads an answer.

    Only its first sentence counts, and that is a "no" where the word no or not stands in it, else
    a "yes".
    """
    first = answer.strip().partition(".")[0].replace(",", " ")
    return not {"no", "not"} & set(re.findall(r"\w+", first.lower()))


def pope_scores(said_yes: Sequence[bool], true_yes: Sequence[bool]) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of "yes", and the share of "yes" said; all in [0, 1].

    Raises:
        ValueError: nothing to score, or lists of different lengths.
    """
    if len(said_yes) != len(true_yes) or not said_yes:
        raise ValueError(f"{len(said_yes)} answers for {len(true_yes)} questions; expected as many")
    pairs = list(zip(said_yes, true_yes, strict=True))
    hits = sum(said and true for said, true in pairs)
    precision = hits / sum(said_yes) if any(said_yes) else 0.0
    recall = hits / sum(true_yes) if any(true_yes) else 0.0
    return {
        "accuracy": sum(said == true for said, true in pairs) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "yes_ratio": sum(said_yes) / len(pairs),
    }
