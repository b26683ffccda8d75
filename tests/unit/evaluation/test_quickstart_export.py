"""What the quickstart's report says of the exported folder where it does not do as the run did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from quickstart_results import answer, exported, make_result, page_of, text_of

from dct_vl.evaluation.quickstart import QuickstartResult, write_quickstart_report


@pytest.fixture
def result(tmp_path: Path) -> QuickstartResult:
    return make_result(tmp_path)


def test_answers_that_the_export_changed_are_counted(
    tmp_path: Path, result: QuickstartResult
) -> None:
    exported(tmp_path / "hf.answers.jsonl", "ww")
    write_quickstart_report(tmp_path, result)
    text = text_of(page_of(tmp_path)[1])
    assert "0 of its 1 answers about pictures are right (0.0 %); 1 are not those of the run" in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["eval_exact_match"], summary["num_exported_answers_differing"]) == (0.0, 1)


def test_an_export_that_was_asked_something_else_is_refused(
    tmp_path: Path, result: QuickstartResult
) -> None:
    strange = tmp_path / "hf.answers.jsonl"
    strange.write_text(json.dumps(answer("s9", 1, True)) + "\n")
    with pytest.raises(ValueError, match=r"turn 1 of s9, which the run was not asked"):
        write_quickstart_report(tmp_path, result)
