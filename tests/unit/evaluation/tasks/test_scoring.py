"""Predictions are scored, and what is wrong with them is said."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from command_line import invoke

from dct_vl.evaluation.metrics.captions import caption_scores
from dct_vl.evaluation.score import (
    read_predictions,
    results_of,
    sample_lines,
    score_predictions,
    write_results,
)
from dct_vl.evaluation.tasks.registry import TASKS, find_task
from dct_vl.evaluation.tasks.task import TaskItem, user_turn


def item(key: str, *references: str, group: str = "", options: tuple[str, ...] = ()) -> TaskItem:
    return TaskItem(
        key=key,
        turns=user_turn("?", 0),
        images=(),
        references=references,
        max_new_tokens=4,
        group=group,
        options=options,
    )


def predictions(tmp_path: Path, *lines: object) -> Path:
    """Objects as JSON, texts as they are."""
    file = tmp_path / "predictions.jsonl"
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("\n".join(text) + "\n")
    return file


def scored(task: str, items: list[TaskItem], answers: dict[str, str], tmp_path: Path, **keys):
    lines = [{"key": key, "answer": answer} for key, answer in answers.items()]
    read = read_predictions(predictions(tmp_path, *lines))
    return score_predictions(find_task(task), items, read, **keys)


def test_a_right_and_a_wrong_answer_of_every_task(tmp_path):
    """(references, group, options) of two items, right and wrong answers, the headline of half."""
    ten = ("red",) * 10
    cases = {
        "vqav2": ([ten, ten], ["Red", "blue"], 0.5),
        "textvqa": ([ten, ten], ["red.", "blue"], 0.5),
        "docvqa": ([("a b",), ("c",)], ["A  B", "xyz"], 0.5),
        "chartqa": ([("10",), ("20",)], ["10.4", "30"], 0.5),
        "ai2d": ([("A",), ("B",)], ["(a)", "A"], 0.5),
        "mmstar": ([("A",), ("B",)], ["A", "who knows"], 0.5),
        "mmvp": ([("A",), ("B",)], ["A", "A"], 0.0),
        "pope": ([("yes",), ("yes",)], ["Yes", "No"], 2 / 3),
        "price": ([("100",), ("100",)], ["120", "?"], (200 / 11 + 200) / 2),
        "qa": ([("a",), ("b",)], ["A ", "c"], 0.5),
    }
    captions = {"coco_captions", "nocaps", "flickr30k"}
    assert {*cases, *captions} == {task.name for task in TASKS}
    for name, (truths, answers, expected) in cases.items():
        items = [item(f"{n}", *truth, group="1") for n, truth in enumerate(truths)]
        report = scored(name, items, {"0": answers[0], "1": answers[1]}, tmp_path)
        headline = report.scores.total[report.task.headline]
        assert headline == pytest.approx(expected), name
        assert len(report.scores.each) == 2
    texts = [["a dog runs on grass"], ["two cats sleep in the sun"]]
    given = {"0": "a dog runs on grass", "1": "a red bus"}
    for name in sorted(captions):
        items = [item(f"{n}", *truth) for n, truth in enumerate(texts)]
        report = scored(name, items, given, tmp_path)
        assert report.scores == find_task(name).score(items, list(given.values()))
        assert report.scores.total == caption_scores(texts, list(given.values())).total


def test_mmvp_needs_both_of_a_pair(tmp_path):
    items = [item(str(n), "A", group=str(n // 2)) for n in range(4)]
    report = scored("mmvp", items, {"0": "A", "1": "A", "2": "A", "3": "B"}, tmp_path)
    assert report.scores.total == {"pair_accuracy": 0.5, "accuracy": 0.75, "unclear": 0.0}
    assert [each["pair_accuracy"] for each in report.scores.each] == [1.0, 1.0, 0.0, 0.0]


def test_groups_are_scored_apart(tmp_path):
    items = [item("0", "1", group="human"), item("1", "1", group="augmented")]
    items.append(item("2", "1", group="augmented"))
    report = scored("chartqa", items, {"0": "1", "1": "1", "2": "9"}, tmp_path)
    assert report.scores.total == pytest.approx(
        {
            "relaxed_accuracy": 2 / 3,
            "relaxed_accuracy_mean_of_groups": 0.75,
            "relaxed_accuracy/augmented": 0.5,
            "relaxed_accuracy/human": 1.0,
        }
    )
    pope = [item(str(n), "yes", group=group) for n, group in enumerate(("random", "popular"))]
    total = scored("pope", pope, {"0": "yes", "1": "no"}, tmp_path).scores.total
    assert (total["accuracy"], total["accuracy/random"], total["accuracy/popular"]) == (0.5, 1, 0)


def test_a_missing_prediction_counts_as_wrong_unless_left_out(tmp_path):
    items = [item("0", "yes"), item("1", "yes"), item("2", "no")]
    report = scored("pope", items, {"0": "yes", "other": "no"}, tmp_path)
    assert report.scores.total["accuracy"] == pytest.approx(1 / 3)
    assert (report.missing, report.unknown) == (["1", "2"], ["other"])
    report = scored("pope", items, {"0": "yes"}, tmp_path, only_answered=True)
    assert (report.scores.total["accuracy"], report.missing) == (1.0, ["1", "2"])


def test_items_without_a_true_answer_are_not_scored(tmp_path):
    report = scored("qa", [item("0", "a"), item("1")], {"0": "a", "1": "b"}, tmp_path)
    assert (report.scores.total["exact_match"], report.num_without_reference) == (1.0, 1)
    with pytest.raises(ValueError, match="none of the 1 items of qa has a true answer"):
        scored("qa", [item("1")], {"1": "b"}, tmp_path)


def test_bad_lines_are_listed_with_their_reason(tmp_path):
    file = predictions(
        tmp_path,
        {"key": "a", "answer": "x"},
        "{",
        "",
        ["a"],
        {"answer": "x"},
        {"key": "b"},
        {"key": "a", "answer": "y"},
        {"key": "c", "answer": 5},
        {"key": "d", "answer": "x", "num_visual_tokens": -1},
        {"key": 7, "answer": "z"},
    )
    read = read_predictions(file)
    assert {key: p.answer for key, p in read.by_key.items()} == {"a": "x", "7": "z"}
    said = "\n".join(read.bad_lines)
    for message in (
        "line 2: unexpected end of data",
        "line 4: a list; expected an object",
        "line 5: key is None; expected a string or an integer",
        "line 6: answer is None; expected a string",
        "line 7: key 'a' is there already; the first one counts",
        "line 8: answer is 5; expected a string",
        "line 9: num_visual_tokens is -1; expected a whole number of at least 0",
    ):
        assert message in said
    assert len(read.bad_lines) == 7


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no prediction .* and is empty"),
        (["{"], "has no prediction .*; line 1: "),
        ([{"key": "p", "answer": "x"}], "its keys are like 'k', those of the predictions like 'p'"),
    ],
)
def test_predictions_of_nothing_are_refused(tmp_path, lines, message):
    file = predictions(tmp_path, *lines)
    with pytest.raises(ValueError, match=message):
        score_predictions(find_task("qa"), [item("k", "x")], read_predictions(file))
    with pytest.raises(ValueError, match="predictions cannot be read"):
        read_predictions(tmp_path / "absent")


def report_with_tokens(tmp_path: Path):
    seen = {"min_pixels": 784, "max_pixels": 43904}
    file = predictions(
        tmp_path,
        {"key": "0", "answer": "a", "num_visual_tokens": 16, **seen},
        {"key": "1", "answer": "b", "num_visual_tokens": 33, **seen},
        {"key": "2", "answer": "c"},
    )
    items = [item("0", "a", group="g"), item("1", "x"), item("2", "c")]
    return score_predictions(find_task("qa"), items, read_predictions(file))


def test_results_have_lmms_evals_shape(tmp_path):
    content = results_of(report_with_tokens(tmp_path))
    assert content["results"]["qa"] == {
        "alias": "qa",
        "exact_match,none": pytest.approx(2 / 3),
        "exact_match_stderr,none": pytest.approx(1 / 3),
        "mean_visual_tokens": 24.5,
        "min_pixels": 784,
        "max_pixels": 43904,
    }
    assert content["n-samples"]["qa"] == {"original": 3, "effective": 3}
    assert content["higher_is_better"]["qa"] == {"exact_match": True}
    for name in ("group_subtasks", "configs", "versions", "n-shot", "problems"):
        assert list(content[name]) == ["qa"]


def test_samples_have_lmms_evals_shape(tmp_path):
    lines = sample_lines(report_with_tokens(tmp_path))
    first = dict(lines[0])
    assert re.fullmatch("[0-9a-f]{64}", first.pop("doc_hash"))
    assert first == {
        "doc_id": 0,
        "key": "0",
        "input": "?",
        "target": '["a"]',
        "filtered_resps": ["a"],
        "group": "g",
        "num_visual_tokens": 16,
        "exact_match": 1.0,
    }
    assert len({line["doc_hash"] for line in lines}) == 3


def test_files_are_named_by_their_moment_and_never_overwritten(tmp_path):
    report = report_with_tokens(tmp_path)
    first = write_results(report, tmp_path / "out", model_name="a/b")
    second = write_results(report, tmp_path / "out")
    assert len({*first, *second}) == 4
    results, samples = first
    assert re.fullmatch(r"\d{8}_\d{6}_results\.json", results.name)
    assert samples.name == results.name.replace("results.json", "samples_qa.jsonl")
    content = json.loads(results.read_text())
    assert content["model_name_sanitized"] == "a__b"
    assert content["date"] + "_results.json" == results.name
    assert len(samples.read_text().splitlines()) == 3


def test_bleu_has_no_standard_error(tmp_path):
    items = [item("0", "a dog"), item("1", "a cat sleeps")]
    report = scored("coco_captions", items, {"0": "a dog", "1": "a dog runs"}, tmp_path)
    numbers = results_of(report)["results"]["coco_captions"]
    assert numbers["Bleu_4_stderr,none"] == "N/A"
    assert numbers["CIDEr-D_stderr,none"] > 0


def questions(tmp_path: Path) -> Path:
    lines = [{"key": n, "question": f"Is it {n}?", "answer": "yes"} for n in "abc"]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def test_the_command_scores_and_writes(tmp_path):
    data = questions(tmp_path)
    seen = {"num_visual_tokens": 16, "min_pixels": 784}
    given = predictions(
        tmp_path,
        {"key": "a", "answer": "Yes", **seen, "max_pixels": 1568},
        {"key": "b", "answer": "no", **seen, "max_pixels": 3136},
        {"key": "x", "answer": "no"},
        "broken",
    )
    command = ["score", "qa", "--data", str(data), "--predictions", str(given)]
    done = invoke(*command, "--json", tmp_path / "out")
    assert done.exit_code == 0, done.output
    for text in (
        "qa  exact_match  0.3333 ± 0.3333",
        "3 items, mean visual tokens 16.0, pixel bounds 784-1568, 784-3136",
        "1 items have no prediction (counted as wrong): c",
        "1 predictions name no item: x",
        "1 lines are no prediction: line 4",
        "different pixel bounds",
    ):
        assert text in done.output
    (results,) = (tmp_path / "out").glob("*_results.json")
    problems = json.loads(results.read_text())["problems"]["qa"]
    assert (problems["missing"], problems["unknown"]) == (["c"], ["x"])
    assert len(problems["bad_lines"]) == 1
    done = invoke(*command, "--only-answered")
    assert "qa  exact_match  0.5000" in done.output
    assert "(left out)" in done.output


def test_every_product_gets_a_price(tmp_path):
    def chats(name: str, *prices: str | None) -> Path:
        lines = []
        for number, price in enumerate(prices):
            messages = [{"role": "user", "content": "A lamp"}]
            if price is not None:
                messages.append({"role": "assistant", "content": price})
            lines.append(json.dumps({"sample_id": f"p{number}", "messages": messages}))
        (tmp_path / name).write_text("\n".join(lines))
        return tmp_path / name

    given = predictions(
        tmp_path, {"key": "p0", "answer": "about $12.50"}, {"key": "p2", "answer": "no idea"}
    )
    command = ["tasks", "price-file", "--predictions", str(given), "--output"]
    command += [str(tmp_path / "test_out.csv"), "--data", str(chats("test.jsonl", *[None] * 3))]
    done = invoke(*command, "--train", chats("t.jsonl", "1", "9", "2"))
    assert "3 prices, 2 of them the training median" in done.output
    rows = (tmp_path / "test_out.csv").read_text().split()
    assert rows == ["sample_id,price", "p0,12.5", "p1,2.0", "p2,2.0"]
    done = invoke(*command, "--train", tmp_path / "test.jsonl")
    assert done.exit_code == 2
    assert "has no price to fill missing ones with" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [("nope", "questions.jsonl", "no task 'nope'"), ("qa", "absent", "does not exist")],
)
def test_the_command_says_what_is_wrong(tmp_path, task, data, message):
    questions(tmp_path)
    given = predictions(tmp_path, {"key": "a", "answer": "yes"})
    command = ["score", task, "--data", str(tmp_path / data), "--predictions", str(given)]
    done = invoke(*command)
    assert done.exit_code == 2
    assert message in done.output


def test_results_that_cannot_be_written_are_an_error_without_a_traceback(tmp_path):
    data = str(questions(tmp_path))
    given = str(predictions(tmp_path, {"key": "a", "answer": "yes"}))
    command = ["score", "qa", "--data", data, "--predictions", given, "--json", given]
    done = invoke(*command)
    assert done.exit_code == 2
    assert "File exists" in done.output


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dct_vl.evaluation.tasks.registry", None)
    done = invoke("tasks", "list")
    assert done.exit_code == 2
    assert "pip install -e '.[eval]'" in done.output


def test_tasks_are_listed_and_shown(tmp_path):
    listed = invoke("tasks", "list").output
    assert all(task.name in listed and task.layout in listed for task in TASKS)
    shown = invoke("tasks", "show", "qa", "--data", questions(tmp_path), "--number", "1")
    assert "qa: 3 items, 3 with a true answer" in shown.output
    assert "question Is it a?" in shown.output
    assert "Is it b?" not in shown.output
