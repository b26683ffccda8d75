"""Tokenizers side by side: grouping, intervals, the table and the refusal of unequal conditions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import orjson
import pytest

from dct_vl.evaluation.study import StudyRun, write_study
from dct_vl.evaluation.study.collect import check_comparable
from dct_vl.evaluation.study.intervals import difference_interval, share_interval
from dct_vl.evaluation.study.report import group

SAMPLES = 400


def make_run(tokenizer: str, seed: int, chance: float, flops: float) -> StudyRun:
    rng = np.random.default_rng([seed, len(tokenizer)])
    words = np.full(SAMPLES, 4)
    return StudyRun(
        name=f"{tokenizer}-{seed}",
        tokenizer=tokenizer,
        seed=seed,
        num_steps=100,
        curve=((50, chance / 2), (100, chance)),
        keys=tuple(str(i) for i in range(SAMPLES)),
        sources=np.array(["numbers_6px", "numbers_14px"] * (SAMPLES // 2)),
        num_words=words,
        num_right=rng.binomial(words, chance),
        visual_tokens=16.0,
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


def test_intervals_hold_the_truth_and_shrink_with_samples():
    rng = np.random.default_rng(0)
    words = np.full(2000, 4)
    right = rng.binomial(words, 0.8)[None]
    low, high = share_interval(right, words)
    assert low < 0.8 < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.16 / 8000), rel=0.15)
    few_low, few_high = share_interval(right[:, :200], words[:200])
    assert few_high - few_low > 2 * (high - low)


def test_a_difference_of_runs_on_the_same_pictures_is_paired():
    """Pictures differ far more from each other than the two runs do on each of them."""
    words = np.full(500, 10)
    easy = np.random.default_rng(0).integers(0, 2, 500) * 5
    ours, theirs = (easy + 2)[None], (easy + 1)[None]
    assert difference_interval(ours, theirs, words) == pytest.approx((0.1, 0.1))


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
    with pytest.raises(ValueError, match="different samples"):
        check_comparable([*runs[:-1], replace(runs[-1], keys=runs[-1].keys[::-1])])
