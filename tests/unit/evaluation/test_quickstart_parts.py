"""What a quickstart leaves: a missing or damaged part is named, a resumed run is compared."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import invoke
from compared_runs import answer, write_lines, write_run

from dct_vl.evaluation.compare.quickstart import ResumeProof, resume_difference
from dct_vl.runs.run_files import STEPS_NAME, append_json_line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What launch/quickstart.sh leaves, without images."""
    for name in ("main", "control", "resumed"):
        write_run(tmp_path / "runs" / name, data=tmp_path / "wds", model="m")
    (tmp_path / "answers").mkdir()
    for name in ("main", "control", "blank"):
        write_lines(tmp_path / "answers" / f"{name}.jsonl", [answer("a", 1)])
    (tmp_path / "wds").mkdir()
    (tmp_path / "wds" / "manifest.json").write_text('{"kept": 1, "rejected": {}}')
    (tmp_path / "hf").mkdir()
    record = '{"outside": {"max_abs_logit_diff": 0.0, "num_prompts_compared": 1}}'
    (tmp_path / "hf" / "dct_vl_export.json").write_text(record)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("answers/main.jsonl", "dct-vl answers"),
        ("wds/manifest.json", "python -m data_prep cambrian"),
        ("hf/dct_vl_export.json", "--outside 40"),
        ("runs/main/config.yaml", "config.yaml"),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_the_part_and_the_next_step_are_named(folder, name, says, damage):
    part = folder / name
    content = part.read_bytes()
    part.unlink()
    if damage == "cut":
        part.write_bytes(content[:12])
    command = ["quickstart", str(folder), "--resumed-from", "1"]
    done = invoke(*command)
    assert done.exit_code == 2, done.exception
    assert part.name in done.output
    assert says in done.output


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
