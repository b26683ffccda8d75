"""The quickstart's report where a part is missing or damaged: the command names it."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import invoke
from compared_runs import answer, write_lines, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What launch/quickstart.sh leaves, without pictures."""
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
