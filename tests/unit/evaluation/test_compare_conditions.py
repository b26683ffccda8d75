"""Every condition is planted as equal and as unequal."""

from __future__ import annotations

import json

import pytest
from compared_runs import answer, write_lines, write_run

from dct_vl.evaluation.compare import read_runs
from dct_vl.evaluation.compare.conditions import (
    check_conditions,
    compare_streams,
    differing_settings,
)
from dct_vl.evaluation.compare.pairing import pair

LINES = [answer("a", 1), answer("b", 0)]


@pytest.fixture
def check(shards, tmp_path):
    """check(change of the second run's writing, its lines) → {subject: [(kind, text)]}."""

    def make(lines=LINES, environment=None, **changes):
        for name in ("one", "two"):
            options = {"data": shards, "model": "2b", **(changes if name == "two" else {})}
            folder = write_run(tmp_path / name, **options)
            write_lines(folder / "answers.jsonl", lines if name == "two" else LINES)
        if environment:
            file = tmp_path / "two" / "environment.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), **environment}))
        runs = read_runs([tmp_path / "one", tmp_path / "two"])
        found: dict[str, list[tuple[str, str]]] = {}
        for finding in check_conditions(runs, pair(runs)[0]):
            found.setdefault(finding.subject, []).append((finding.kind, finding.text))
        return found

    return make


def test_equal_runs_have_no_warning(check):
    found = check(overrides=["tokenizer=pixel", "data.num_workers=1", "trainer.save_every=7"])
    assert {kind for texts in found.values() for kind, _ in texts} == {"ok"}
    checked = (
        "pixel bounds, data, split, sample stream, questions, held out, settings, length, machine"
    )
    assert list(found) == checked.split(", ")


@pytest.mark.parametrize(
    ("subject", "changes", "expected"),
    [
        (
            "pixel bounds",
            {"overrides": ["data.max_pixels=90000"]},
            "one 784–43,904, two 784–90,000 pixels",
        ),
        ("data", {"data": "/nowhere"}, "two did not write down a hash"),
        ("split", {"data": "/nowhere"}, "two did not write down a hash"),
        (
            "data",
            {"environment": {"data": {"shards": "0123", "split": "4567"}}},
            "did not have the same shards: hashes are one",
        ),
        (
            "split",
            {"environment": {"data": {"shards": "0123", "split": "4567"}}},
            "two 4567",
        ),
        (
            "sample stream",
            {"keys": {1: ["t1"], 2: ["x"], 3: ["t3"]}},
            "different samples in 1 of 3 steps, the first of which is 2; 2 samples came in both, "
            "1 and 1 only in one",
        ),
        ("sample stream", {"keys": {}}, "one of them has no ledger"),
        ("held out", {"keys": {}}, "Without every ledger"),
        ("held out", {"keys": {1: ["t1"], 2: ["a"], 3: ["t3"]}}, "trained on: two 1."),
        (
            "settings",
            {"overrides": ["optim.lr=0.5", "seed=3"]},
            "other values of seed, optim.lr.",
        ),
        ("length", {"losses": [4.0, 3.0], "rates": [1, 1]}, "one 3, two 2"),
        ("machine", {"environment": {"platform": "a toaster"}}, "operating system"),
        (
            "questions",
            {"lines": [*LINES, answer("c", 1)]},
            "only the 2 questions that all runs answered count; left out are one 0, two 1",
        ),
        (
            "answers",
            {"lines": [answer("a", 1, step=2), answer("b", 0, step=2)]},
            "answers of two are of step 2, and the run is at step 3: ask it again",
        ),
    ],
)
def test_every_difference_is_named(check, subject, changes, expected):
    found = check(**changes)
    warnings = [text for kind, text in found[subject] if kind == "warning"]
    assert any(expected in text for text in warnings), found[subject]


def test_answers_under_other_bounds_than_in_training_are_named(tmp_path):
    for name in ("one", "two"):
        folder = write_run(tmp_path / name, data=tmp_path, model="2b")
        lines = [{"doc_id": 1, "target": "x", "filtered_resps": ["x"], "exact_match": 1.0}]
        write_lines(folder / "9_samples_mine.jsonl", lines)
        bounds = {"min_pixels": 784, "max_pixels": 50176 if name == "two" else 43904}
        (folder / "9_results.json").write_text(json.dumps({"results": {"mine": bounds}}))
    runs = read_runs([tmp_path / "one", tmp_path / "two"])
    texts = [f.text for f in check_conditions(runs, pair(runs)[0]) if f.subject == "pixel bounds"]
    assert texts == [
        "two answered mine with 784–50,176 pixels, and was trained with 784–43,904.",
        "All runs resize images to 784–43,904 pixels.",
    ]


def test_settings_that_differ_are_listed_with_their_values(tmp_path):
    for name, more in (("one", []), ("two", ["optim.lr=0.5", "tokenizer=pixel", "seed=3"])):
        folder = write_run(tmp_path / name, data=tmp_path, model="2b", overrides=more)
        write_lines(folder / "answers.jsonl", LINES)
    found = differing_settings(read_runs([tmp_path / "one", tmp_path / "two"]))
    assert found["seed"] == ("1234", "3")
    assert found["optim.lr"] == ("1e-05", "0.5")
    assert found["tokenizer.name"] == ("dct28_420", "pixel")
    assert not {"experiment_name", "log_dir"} & set(found)


def test_streams_are_equal_whatever_the_order_within_a_step():
    first = {1: ["a", "b"], 2: ["c", "a"]}
    assert compare_streams(first, {1: ["b", "a"], 2: ["a", "c"], 3: ["z"]}) is None
    swapped = compare_streams(first, {1: ["c", "a"], 2: ["a", "b"]})
    assert swapped is not None
    assert "the same 3 samples came in another order or number" in swapped
    assert compare_streams({1: ["a"]}, {2: ["a"]}) == "their ledgers have no step in common."
