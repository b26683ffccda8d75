"""Tokenizers side by side: grouping, intervals, the table and the refusal of unequal conditions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from dct_vl.evaluation.compare.results import WORDS_METRIC, ItemScore, ResultFile
from dct_vl.evaluation.compare.study import StudyRun, check_comparable, group, write_study

SAMPLES = 400


def make_words(right: np.ndarray) -> ResultFile:
    items = [
        ItemScore(
            key=str(number),
            source=("numbers_6px", "numbers_14px")[number % 2],
            got=float(got),
            of=4.0,
            num_visual_tokens=16,
        )
        for number, got in enumerate(right)
    ]
    by_id = {item.id: item for item in items}
    return ResultFile(path=Path("words.jsonl"), metric=WORDS_METRIC, items=by_id)


def make_run(tokenizer: str, seed: int, chance: float, flops: float) -> StudyRun:
    rng = np.random.default_rng([seed, len(tokenizer)])
    return StudyRun(
        name=f"{tokenizer}-{seed}",
        tokenizer=tokenizer,
        seed=seed,
        curve=((50, chance / 2), (100, chance)),
        words=make_words(rng.binomial(np.full(SAMPLES, 4), chance)),
        flops=flops,
        wire_bytes=1000,
        measured_speed=None,
        training_speed=100.0 * seed,
        conditions={"steps": 100, "optim.lr": 1e-3},
    )


@pytest.fixture
def runs():
    return [
        *(make_run("pixel28", seed, 0.7, 2e9) for seed in (1, 2, 3)),
        *(make_run("dct28_420", seed, 0.8, 2e9) for seed in (1, 2, 3)),
        make_run("pixel", 1, 0.9, 8e9),
    ]


def test_runs_are_grouped_by_tokenizer_dearest_first(runs):
    variants = group(runs)
    assert [v.tokenizer for v in variants] == ["pixel", "dct28_420", "pixel28"]
    assert [len(v.runs) for v in variants] == [1, 3, 3]
    assert variants[1].samples_per_second == 200


def test_speed_is_of_the_runs_that_were_measured_alone(runs, tmp_path):
    runs[0] = replace(runs[0], measured_speed=950.0)
    assert group(runs)[2].samples_per_second == 950
    table = write_study(runs, tmp_path, baseline="pixel28").read_text()
    assert "| 950 |" in table
    assert "| 200 (training) |" in table


def test_the_table_has_every_tokenizer_and_the_difference(runs, tmp_path):
    table = write_study(runs, tmp_path, baseline="pixel28").read_text()
    costs, kinds = (part.splitlines() for part in table.split("\n\n"))
    for lines in (costs, kinds):
        assert len(lines) == 2 + 3
        assert len({line.count("|") for line in lines}) == 1
    assert costs[0].endswith("against pixel28 |")
    assert kinds[0] == "| words read, % | numbers_14px | numbers_6px |"
    # told from the baseline by its interval, and the baseline itself
    assert "(+" in kinds[3]
    assert "(" not in kinds[4]
    rows = {row["tokenizer"]: row for row in orjson.loads((tmp_path / "study.json").read_bytes())}
    low, high = rows["dct28_420"]["difference_interval"]
    assert 0 < low < 0.1 < high
    assert rows["pixel28"]["difference"] == 0
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


def test_an_absent_baseline_is_named_with_what_is_there(runs, tmp_path):
    with pytest.raises(ValueError, match=r"'dct21'.*pixel28, dct28_420, pixel|scored are"):
        write_study(runs, tmp_path, baseline="dct21")


def test_runs_under_other_conditions_are_refused(runs):
    check_comparable(runs)
    other = replace(runs[-1], conditions={"steps": 200, "optim.lr": 1e-3})
    with pytest.raises(ValueError, match="steps = 100, pixel-1 has 200"):
        check_comparable([*runs[:-1], other])
    words = runs[-1].words
    turned = replace(words, items=dict(reversed(words.items.items())))
    with pytest.raises(ValueError, match="different samples"):
        check_comparable([*runs[:-1], replace(runs[-1], words=turned)])


def test_a_source_with_one_sample_has_no_interval(runs, tmp_path):
    def lone(run: StudyRun) -> StudyRun:
        first, *others = run.words.items.values()
        items = [replace(first, source="lines_3px"), *others]
        return replace(run, words=replace(run.words, items={item.id: item for item in items}))

    table = write_study([lone(run) for run in runs], tmp_path, baseline="pixel28").read_text()
    rows = orjson.loads((tmp_path / "study.json").read_bytes())
    assert [row["difference_interval_by_source"]["lines_3px"] for row in rows] == [None] * 3
    assert "| lines_3px |" in table
