"""Did two runs consume the same samples in the same steps?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

Ledger = Mapping[int, Sequence[str]]


def compare_streams(first: Ledger, second: Ledger) -> str | None:
    """What is different, as a sentence; None where each step of both had the same samples.

    The order within a step plays no part: its gradient is a sum. Steps that only the longer of two
    runs did are no difference either.

    Args:
        first, second: sample keys by step, from `dct_vl.runs.ledger.read_ledger`.
    """
    if not first or not second:
        return "one of them has no ledger, so nobody can tell whether they saw the same samples."
    common = sorted(first.keys() & second.keys())
    if not common:
        return "their ledgers have no step in common."
    differing = [step for step in common if Counter(first[step]) != Counter(second[step])]
    if not differing:
        return None
    ours, theirs = ({key for step in common for key in led[step]} for led in (first, second))
    if ours == theirs:
        kind = f"the same {len(ours):,} samples came in another order or number"
    else:
        kind = (
            f"{len(ours & theirs):,} samples came in both, {len(ours - theirs):,} and "
            f"{len(theirs - ours):,} only in one"
        )
    return (
        f"they consumed different samples in {len(differing):,} of {len(common):,} steps, the "
        f"first of which is {differing[0]:,}; {kind}."
    )
