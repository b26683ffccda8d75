"""Scores of single questions out of every file that holds some, and what is wrong with others."""

from __future__ import annotations

import orjson
import pytest
from compared_runs import answer, write_lines

from dct_vl.evaluation.compare.results import find_results, read_results
from dct_vl.evaluation.score import Prediction, Predictions, score_predictions, write_results
from dct_vl.evaluation.tasks.registry import find_task
from dct_vl.evaluation.tasks.task import TaskItem, user_turn


def test_answers_are_found_by_key_and_turn_and_more_keys_are_allowed(tmp_path):
    lines = [
        answer("a", 1, seconds=0.5),
        answer("a", 0, turn=3, question="And now?", num_visual_tokens=18, source=""),
    ]
    found = read_results(write_lines(tmp_path / "x.jsonl", lines))
    assert found.metric == "exact answers"
    first, second = found.items["a", 1], found.items["a", 3]
    assert (first.num_images, second.num_images) == (1, 0)
    assert (first.got, first.of, first.question, first.source) == (1, 1, "Question 1?", "shapes")
    assert (second.got, second.answer, second.num_visual_tokens) == (0, "no", 18)
    assert second.source == "unnamed"


def test_a_source_may_be_a_number(tmp_path):
    words = {"key": "a", "source": 7, "num_words": 4, "num_right": 3, "num_visual_tokens": 16}
    for name, line in (("x", answer("a", 1, source=7)), ("words", words)):
        (item,) = read_results(write_lines(tmp_path / f"{name}.jsonl", [line])).items.values()
        assert item.source == "7"


def test_words_weigh_by_their_number(tmp_path):
    line = {"key": "a", "source": "s", "num_words": 4, "num_right": 3, "num_visual_tokens": 16}
    empty = {**line, "key": "b", "num_words": 0, "num_right": 0}
    found = read_results(write_lines(tmp_path / "words.jsonl", [line, empty]))
    (item,) = found.items.values()
    assert (item.got, item.of, item.answer) == (3, 4, "3 of 4 words right")


@pytest.fixture
def scored(tmp_path):
    """Two questions of DocVQA scored by ourselves: one exact, one with 1 of 5 letters wrong."""
    items = [
        TaskItem(
            key=key,
            turns=user_turn(f"What of {key}?"),
            images=(),
            references=references,
            max_new_tokens=8,
        )
        for key, references in (("q1", ("house",)), ("q2", ("plane", "jet")))
    ]
    said = {"q1": "house", "q2": "plana"}
    predictions = Predictions(
        by_key={
            key: Prediction(
                key=key, answer=text, num_visual_tokens=25, min_pixels=784, max_pixels=50176
            )
            for key, text in said.items()
        },
        bad_lines=[],
    )
    report = score_predictions(find_task("docvqa"), items, predictions)
    return write_results(report, tmp_path / "run")[1]


def test_a_tasks_samples_are_read_by_its_headline(scored):
    found = read_results(scored)
    assert found.metric == find_task("docvqa").headline
    assert [item.got for item in found.items.values()] == [1, pytest.approx(0.8)]
    second = found.items["q2", 0]
    assert (second.question, second.truth, second.answer) == ("What of q2?", "plane | jet", "plana")
    assert second.num_visual_tokens == 25
    assert found.pixel_bounds == (784, 50176)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"results": {"doc',
        b"[]",
        b'{"results": null}',
        b'{"results": {"docvqa": [1]}}',
        b'{"results": {"docvqa": {"min_pixels": "few", "max_pixels": 9}}}',
    ],
)
def test_a_damaged_file_of_results_beside_the_samples_is_named(scored, content):
    (results,) = scored.parent.glob("*_results.json")
    results.write_bytes(content)
    with pytest.raises(ValueError, match=r"_results\.json cannot be read \(.*score docvqa again"):
        read_results(scored)
    results.unlink()
    assert read_results(scored).pixel_bounds is None


def test_the_newest_samples_of_a_task_count(scored):
    folder = scored.parent
    write_lines(folder / "answers.jsonl", [answer("a", 1)])
    write_lines(folder / "answers.rejected.jsonl", [{"key": "b", "reason": "schema"}])
    newer = folder / "29990101_000000_samples_docvqa.jsonl"
    newer.write_bytes(scored.read_bytes())
    assert find_results(folder) == {"answers": folder / "answers.jsonl", "docvqa": newer}


def test_other_peoples_samples_need_a_metric_where_there_are_several(tmp_path):
    line = {"doc_id": 7, "target": "B", "filtered_resps": ["B"], "acc": 1.0, "f1": 0.5}
    path = write_lines(tmp_path / "2026_samples_unheard.jsonl", [line])
    with pytest.raises(ValueError, match=r"has the scores acc, f1: choose one with --metric"):
        read_results(path)
    with pytest.raises(ValueError, match=r"no score 'bleu'; its scores are acc, f1"):
        read_results(path, "bleu")
    (item,) = read_results(path, "f1").items.values()
    assert (item.key, item.got, item.truth) == ("7", 0.5, "B")


def test_what_is_no_file_of_scores_is_refused_with_the_next_step(tmp_path):
    generated = write_lines(tmp_path / "g.jsonl", [{"key": "a", "answer": "b", "finish": "stop"}])
    with pytest.raises(ValueError, match=r"g\.jsonl has no scores.*dct-vl score TASK"):
        read_results(generated)
    twice = write_lines(tmp_path / "t.jsonl", [answer("c", 1), answer("a", 1), answer("a", 0)])
    with pytest.raises(ValueError, match=r"t\.jsonl has a \(turn 1\) twice"):
        read_results(twice)
    with pytest.raises(ValueError, match=r"nothing\.jsonl cannot be read: No such file"):
        read_results(tmp_path / "nothing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl is empty"):
        read_results(tmp_path / "empty.jsonl")
    (tmp_path / "cut.jsonl").write_bytes(orjson.dumps(answer("a", 1)) + b'\n{"key": "b", "tu')
    with pytest.raises(ValueError, match=r"cut\.jsonl, line 2 is no JSON"):
        read_results(tmp_path / "cut.jsonl")
    short = write_lines(tmp_path / "s.jsonl", [answer("a", 1), {"key": "b", "correct": True}])
    with pytest.raises(ValueError, match=r"s\.jsonl, line 2: KeyError\('turn'\)"):
        read_results(short)
    listed = write_lines(tmp_path / "l.jsonl", [[1]])
    with pytest.raises(ValueError, match=r"l\.jsonl, line 1 is a list, not an object"):
        read_results(listed)
    null = write_lines(tmp_path / "n.jsonl", [answer("a", 1), answer("b", 1, question=None)])
    with pytest.raises(ValueError, match=r"n\.jsonl, line 2: AttributeError"):
        read_results(null)
    bad = {"doc_id": 1, "target": "", "filtered_resps": [""], "acc": 1.0}
    lines = write_lines(tmp_path / "1_samples_x.jsonl", [bad, {**bad, "doc_id": 2, "acc": None}])
    with pytest.raises(ValueError, match=r"line 2: TypeError"):
        read_results(lines)
