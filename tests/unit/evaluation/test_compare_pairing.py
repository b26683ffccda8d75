"""Scores of runs on the same questions, held to sums and resamples done another way."""

from __future__ import annotations

import pytest
from command_line import invoke
from compared_runs import answer, write_lines, write_run

from dct_vl.evaluation.compare import read_runs
from dct_vl.evaluation.compare.pairing import pair, score_runs, score_sources


@pytest.fixture
def two(tmp_path):
    """two(lines of the first, lines of the second) → runs with these answers."""

    def make(first, second, **options):
        folders = [
            write_run(tmp_path / name, data=tmp_path / "none", model="2b") for name in ("ours", "b")
        ]
        for folder, lines in zip(folders, (first, second), strict=True):
            write_lines(folder / "answers.jsonl", lines)
        return read_runs(folders, **options)

    return make


def test_scores_count_only_what_all_answered_about_pictures(two):
    ours = [
        answer("a", 1),
        answer("a", 1, turn=3, num_visual_tokens=18),
        answer("b", 0, source="charts"),
        answer("text", 1, num_visual_tokens=0),
        answer("mine", 1),
    ]
    theirs = [answer("b", 1, source="charts"), answer("a", 1), answer("a", 0, turn=3)]
    theirs.append(answer("text", 1, num_visual_tokens=0))
    runs = two(ours, theirs)
    (paired,), others = pair(runs)
    assert others == {}
    assert [row[0].id for row in paired.items] == [("a", 1), ("a", 3), ("b", 1)]
    assert paired.num_without_image == 1
    assert paired.num_unpaired == (1, 0)
    first, second = score_runs(paired, 0)
    assert first.score == pytest.approx(2 / 3)
    assert second.score == pytest.approx(2 / 3)
    assert (second.num_better, second.num_worse, second.difference) == (1, 1, 0)
    assert first.difference_interval is None
    assert (first.visual_tokens, second.visual_tokens) == ((18 + 9) / 2, 9)
    assert [(s.source, s.num_items, s.shares) for s in score_sources(paired)] == [
        ("charts", 1, (0, 1)),
        ("shapes", 2, (1, 0.5)),
    ]


def test_lower_can_be_better(two, tmp_path):
    lines = [
        {"doc_id": n, "target": "1", "filtered_resps": ["1"], "smape": n, "num_visual_tokens": 4}
        for n in range(4)
    ]
    files = {
        name: write_lines(
            tmp_path / f"{name}_samples_price.jsonl",
            [{**line, "smape": line["smape"] + more} for line in lines],
        )
        for name, more in (("ours", 0), ("b", 1))
    }
    runs = two([answer("a", 1)], [answer("a", 1)], answers=files)
    (paired,), _ = pair(runs)
    assert not paired.higher_is_better
    assert not paired.is_share
    _, worse = score_runs(paired, 0)
    assert (worse.num_better, worse.num_worse, worse.difference) == (0, 4, 1)
    assert worse.difference_interval == pytest.approx((1, 1))


def test_questions_of_one_sample_are_drawn_together(two):
    """Twenty equal answers about each of four samples are four observations, not eighty."""
    lines = [answer(f"s{n}", n < 2, turn=t) for n in range(4) for t in range(20)]
    (paired,), _ = pair(two(lines, lines))
    low, high = score_runs(paired, 0)[0].interval
    assert (low, high) == (0, 1)


def test_files_without_a_common_question_are_named(two):
    with pytest.raises(ValueError, match=r"ours/answers\.jsonl and .*b/answers\.jsonl have no"):
        pair(two([answer("a", 1)], [answer("z", 1)]))


def test_sets_without_a_common_name_are_listed(two):
    runs = two([answer("a", 1)], [answer("a", 1)])
    (runs[1].folder / "answers.jsonl").rename(runs[1].folder / "answers-test.jsonl")
    runs = read_runs([run.folder for run in runs])
    with pytest.raises(ValueError, match=r"ours: answers; b: answers-test\): answer the same"):
        pair(runs)


def test_other_scores_and_no_pictures_are_refused(two, tmp_path):
    words = {"key": "a", "source": "", "num_words": 1, "num_right": 1, "num_visual_tokens": 4}
    file = write_lines(tmp_path / "w.jsonl", [words])
    runs = two([answer("a", 1)], [answer("a", 1)], answers={"b": file})
    with pytest.raises(ValueError, match=r"holds exact answers, .*w\.jsonl words right"):
        pair(runs)
    text = [answer("a", 1, num_visual_tokens=0)]
    with pytest.raises(ValueError, match="none of the questions is about an image"):
        pair(two(text, text))


def test_folders_that_are_no_runs_are_refused_with_the_next_step(two, tmp_path):
    runs = two([answer("a", 1)], [answer("a", 1)])
    good, bare = (run.folder for run in runs)
    with pytest.raises(ValueError, match=r"1 runs; expected 2 to 8"):
        read_runs([good])
    with pytest.raises(ValueError, match="named twice"):
        read_runs([good, good / "." / ".." / good.name])
    with pytest.raises(ValueError, match=r"nowhere is no folder: expected a run's"):
        read_runs([good, tmp_path / "nowhere"])
    (tmp_path / "plain").mkdir()
    with pytest.raises(ValueError, match=r"plain is not a run's folder: it has no config\.yaml"):
        read_runs([good, tmp_path / "plain"])
    with pytest.raises(ValueError, match=r"--answers names 'c'; the runs are ours, b"):
        read_runs([good, bare], answers={"c": tmp_path / "x"})
    (bare / "answers.jsonl").unlink()
    with pytest.raises(ValueError, match=r"b has no scores .*add --ask, or run `dct-vl answers "):
        read_runs([good, bare])
    write_lines(bare / "answers.jsonl", [answer("a", 1)])
    (bare / "steps.jsonl").unlink()
    with pytest.raises(ValueError, match=r"steps\.jsonl has no step"):
        read_runs([good, bare])


@pytest.mark.parametrize("text", ["", '{"data": {', "[]"])
def test_a_damaged_environment_is_named(two, tmp_path, text):
    runs = two([answer("a", 1)], [answer("a", 1)])
    file = runs[0].folder / "environment.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"environment\.json (cannot|holds a) .*: remove it"):
        read_runs([run.folder for run in runs])
    file.unlink()
    assert read_runs([run.folder for run in runs])[0].environment == {}


def test_what_cannot_be_meant_is_refused_by_the_command(two, tmp_path):
    runs = [str(run.folder) for run in two([answer("a", 1)], [answer("a", 1)])]

    def said(*options: str) -> str:
        done = invoke("compare", *runs, *options)
        assert done.exit_code == 2
        return done.output

    twice = [word for file in ("x", "y") for word in ("--answers", f"b={file}")]
    assert "--answers names b twice, x and y: name one" in said(*twice)
    (tmp_path / "file").touch()
    assert "--output names a folder" in said("--output", str(tmp_path / "file"))
    assert "--output names a folder" in said("--output", str(tmp_path / "file" / "below"))


def test_runs_of_one_name_are_told_apart(two, tmp_path):
    runs = two([answer("a", 1)], [answer("a", 1)])
    other = write_run(tmp_path / "later" / "b", data=tmp_path / "none", model="2b")
    write_lines(other / "answers.jsonl", [answer("a", 0)])
    found = read_runs([runs[1].folder, other])
    assert [run.name for run in found] == [f"{tmp_path.name}/b", "later/b"]
