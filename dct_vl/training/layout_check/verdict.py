"""Compares a layout's figures with those of one process."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dct_vl.training.layout_check.runs import Outcome


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Largest relative differences that pass."""

    loss: float
    norm: float


#: fp32 on CPU ranks: rounding of sums in another order
FP32 = Tolerance(loss=1e-4, norm=1e-3)
#: bf16 on GPUs: activations of 8 bits of precision, reduced in another order at every layer
BF16 = Tolerance(loss=2e-2, norm=1e-1)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One line of the table."""

    variant: str
    layout: str
    status: Literal["PASS", "FAIL", "REFUSED"]
    loss_difference: float | None
    norm_difference: float | None
    seconds: float
    reason: str


def judge(outcome: Outcome, reference: Outcome, tolerance: Tolerance, steps: int) -> Verdict:
    """PASS where all steps agree, REFUSED where the configuration of a layout was turned down, else
    FAIL; a reference that was turned down is a fault of the settings.
    """
    case = outcome.case
    loss = norm = None
    status: Literal["PASS", "FAIL", "REFUSED"] = "FAIL"
    if outcome.refusal:
        status = "FAIL" if outcome is reference else "REFUSED"
        reason = outcome.refusal
    elif outcome.failure:
        reason = outcome.failure
    elif reference.refusal or reference.failure:
        reason = "there is no reference to compare with"
    elif not len(outcome.losses) == len(reference.losses) == steps:
        done = f"{len(outcome.losses)} steps, the reference {len(reference.losses)}"
        reason = f"{done}; expected {steps}"
    else:
        loss = largest_difference(outcome.losses, reference.losses)
        norm = largest_difference(outcome.norms, reference.norms)
        good = loss <= tolerance.loss and norm <= tolerance.norm
        status = "PASS" if good else "FAIL"
        reason = "" if good else f"more than {tolerance.loss:g} (loss) or {tolerance.norm:g} (norm)"
    return Verdict(
        variant=case.variant,
        layout=case.layout.name,
        status=status,
        loss_difference=loss,
        norm_difference=norm,
        seconds=round(outcome.seconds, 1),
        reason=reason,
    )


def largest_difference(found: tuple[float, ...], expected: tuple[float, ...]) -> float:
    """Largest relative difference; infinite where any figure is not finite."""
    if not all(math.isfinite(x) for x in (*found, *expected)):
        return math.inf
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(found, expected, strict=True))
