"""The proof that a resumed run goes on as the uninterrupted one did."""

from __future__ import annotations

from pathlib import Path

import pytest

from dct_vl.evaluation.compare.quickstart import ResumeProof, resume_difference
from dct_vl.runs.run_files import STEPS_NAME, append_json_line


def write_steps(folder: Path, losses: list[tuple[int, float | None]]) -> Path:
    folder.mkdir()
    for step, loss in losses:
        append_json_line(folder / STEPS_NAME, {"step": step, "loss": loss})
    return folder


def test_only_later_steps_that_both_did_are_compared(tmp_path: Path) -> None:
    whole = write_steps(tmp_path / "whole", [(1, 5.0), (2, 4.0), (3, 3.0), (4, 2.0), (5, 1.0)])
    # steps 1 and 2 lie before the checkpoint, 3 was done twice, 6 only here
    lines = [(1, 99.0), (2, 99.0), (3, 99.0), (3, 3.0), (4, 2.25), (6, 0.5)]
    resumed = write_steps(tmp_path / "resumed", lines)
    assert resume_difference(whole, resumed, 2) == ResumeProof(
        from_step=2, num_steps=2, max_abs_loss_diff=0.25
    )


def test_equal_losses_differ_by_exactly_nothing(tmp_path: Path) -> None:
    whole = write_steps(tmp_path / "whole", [(1, 0.1), (2, 0.1 + 0.2)])
    resumed = write_steps(tmp_path / "resumed", [(2, 0.1 + 0.2)])
    assert resume_difference(whole, resumed, 1).max_abs_loss_diff == 0.0
    almost = write_steps(tmp_path / "almost", [(2, 0.3)])
    assert resume_difference(whole, almost, 1).max_abs_loss_diff > 0.0


def test_no_common_step_is_no_proof(tmp_path: Path) -> None:
    whole = write_steps(tmp_path / "whole", [(1, 5.0), (2, 4.0)])
    resumed = write_steps(tmp_path / "resumed", [(1, 5.0), (2, 4.0)])
    with pytest.raises(ValueError, match=r"no step after 2 in common \(0 and 0 logged\)"):
        resume_difference(whole, resumed, 2)


def test_a_loss_that_is_no_number_is_no_proof(tmp_path: Path) -> None:
    whole = write_steps(tmp_path / "whole", [(1, float("nan"))])
    resumed = write_steps(tmp_path / "resumed", [(1, float("nan"))])
    with pytest.raises(ValueError, match="the loss of step 1 is None"):
        resume_difference(whole, resumed, 0)
