"""Answers: reading, counting and intervals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dct_vl.evaluation.quickstart.answers import Accuracy, AnswerLine, count_pictures, read_answers

LINE = {
    "key": "a",
    "turn": 1,
    "question": "<image>\nWhat?",
    "truth": "x",
    "answer": "y",
    "correct": False,
    "source": "",
    "num_visual_tokens": 4,
}


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_lines_are_read_and_more_keys_are_allowed(tmp_path: Path) -> None:
    (line,) = read_answers(write(tmp_path / "a.jsonl", {**LINE, "seconds": 0.5}))
    assert line == AnswerLine(**LINE)  # type: ignore[arg-type]
    assert line.plain_question == "What?"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([LINE, {"key": "b"}], r"line 2: KeyError\('turn'\); expected an object with key, turn"),
        ([[1]], "line 1: TypeError"),
        ([LINE, LINE], "answers a question twice"),
        ([{**LINE, "num_visual_tokens": 0}], "no answer about a picture"),
        ([], "no answer about a picture"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, lines: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_answers(write(tmp_path / "a.jsonl", *lines))


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", LINE)
    path.write_text(path.read_text() + '{"key": "b", "tu')
    with pytest.raises(ValueError, match="line 2: JSONDecodeError"):
        read_answers(path)


def test_a_sample_counts_once_with_all_its_pictures() -> None:
    lines = [
        AnswerLine(**{**LINE, "question": "<image>What?"}),  # type: ignore[arg-type]
        AnswerLine(**{**LINE, "turn": 3, "question": "And?"}),  # type: ignore[arg-type]
        AnswerLine(
            **{**LINE, "key": "b", "question": "<image><image>", "num_visual_tokens": 26}  # type: ignore[arg-type]
        ),
    ]
    found = count_pictures(lines)
    assert found.num_pictures == 3
    assert found.tokens_per_picture == 10.0
    assert (found.fewest_tokens, found.most_tokens) == (4, 26)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_follow_wilson(counts: tuple[int, int]) -> None:
    k, n = counts
    low, high = Accuracy(num_right=k, num_answers=n).interval
    z = 1.959963984540054
    middle, half = k + z * z / 2, z * math.sqrt(k * (n - k) / n + z * z / 4)
    assert low == pytest.approx(max(0.0, (middle - half) / (n + z * z)), abs=1e-9)
    assert high == pytest.approx(min(1.0, (middle + half) / (n + z * z)), abs=1e-9)
