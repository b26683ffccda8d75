"""Did a resumed run go on exactly as the uninterrupted one did?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from dct_vl.runs.run_files import read_steps


@dataclass(frozen=True, kw_only=True)
class ResumeProof:
    """The losses of two runs after a restart of one of them."""

    #: step of the checkpoint that the resumed run started from
    from_step: int
    #: later steps that both runs logged
    num_steps: int
    #: 0.0 where every loss is equal to the last digit
    max_abs_loss_diff: float


def resume_difference(
    uninterrupted_dir: str | Path, resumed_dir: str | Path, from_step: int
) -> ResumeProof:
    """Compare the losses of the steps after `from_step` that both runs logged.

    Args:
        uninterrupted_dir: folder of the run that was never stopped.
        resumed_dir: folder of the run that went on from its checkpoint of `from_step`; of steps
            that it did twice, the later ones count.
        from_step: step of that checkpoint.

    Raises:
        ValueError: there is no such step, or a loss that is not finite.
    """
    whole, resumed = (
        {entry["step"]: entry["loss"] for entry in read_steps(folder) if entry["step"] > from_step}
        for folder in (uninterrupted_dir, resumed_dir)
    )
    common = sorted(whole.keys() & resumed.keys())
    if not common:
        raise ValueError(
            f"{uninterrupted_dir} and {resumed_dir} have no step after {from_step} in common "
            f"({len(whole)} and {len(resumed)} logged): let both run beyond the checkpoint"
        )
    for folder, losses in ((uninterrupted_dir, whole), (resumed_dir, resumed)):
        for step in common:
            if losses[step] is None or not math.isfinite(losses[step]):
                raise ValueError(f"{folder}: the loss of step {step} is {losses[step]}, not finite")
    return ResumeProof(
        from_step=from_step,
        num_steps=len(common),
        max_abs_loss_diff=max(abs(whole[step] - resumed[step]) for step in common),
    )
