"""Requests, the journal, and batches that several groups share."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from itertools import islice
from pathlib import Path

import pytest
import torch.distributed as dist
from command_line import invoke

from dct_vl.evaluation.score import read_predictions
from dct_vl.evaluation.tasks.registry import find_task
from dct_vl.evaluation.tasks.task import TaskRequests
from dct_vl.inference.generate.engine import Reply
from dct_vl.inference.generate.journal import Journal
from dct_vl.inference.generate.replicas import ParallelSizes, ReplicaGroup, parallel_sizes
from dct_vl.inference.generate.requests import FileRequests
from dct_vl.inference.generate.run import generate
from dct_vl.inference.sampling import AnswerSettings

ALONE = ParallelSizes()


class EchoEngine:
    """Answers with the question, a batch in reverse order."""

    min_pixels, max_pixels = 4, 16

    def __init__(self, fail_after: int | None = None, gate: threading.Barrier | None = None):
        self.batches: list[list[str]] = []
        self.fail_after, self.gate = fail_after, gate

    def identity(self):
        return {"model": "echo"}

    def encode(self, request):
        if "broken" in request.turns[-1].text:
            raise ValueError("it is broken")
        request.read()
        return request

    def stream(self, encoded, batch_size):
        numbered = enumerate(encoded)
        while batch := list(islice(numbered, batch_size)):
            if self.gate and not self.batches:
                self.gate.wait(20)
            self.batches.append([one.key for _, one in batch])
            if self.fail_after is not None and len(self.batches) > self.fail_after:
                raise KeyboardInterrupt
            for number, one in reversed(batch):
                text = one.turns[-1].text
                if text == "long":
                    yield number, ValueError("it does not fit")
                    continue
                said = f"{one.key}: {text}"
                yield (
                    number,
                    Reply(text=said, num_tokens=3, is_finished=True, num_visual_tokens=0),
                )


@pytest.fixture
def questions(tmp_path) -> Path:
    lines = [{"key": f"k{n}", "question": f"q{n}"} for n in range(11)]
    lines[4]["question"] = "broken"
    lines[7]["image"] = "nowhere.jpg"
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def alone() -> ReplicaGroup:
    return ReplicaGroup(is_leader=True, is_first=True, store=None, sizes=ALONE)


def run(
    engine,
    questions: Path,
    output: Path,
    group: ReplicaGroup | None = None,
    batch_size: int = 3,
    **settings,
):
    asked = FileRequests(questions, max_new_tokens=5)
    options = AnswerSettings(**settings)
    return generate(
        engine, asked, Journal(output), group or alone(), options, batch_size=batch_size
    )


def test_answers_come_in_order_and_rejected_questions_with_reasons(questions, tmp_path):
    done = run(EchoEngine(), questions, tmp_path / "deep" / "a.jsonl")
    lines = [json.loads(x) for x in (tmp_path / "deep" / "a.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == [f"k{n}" for n in range(11) if n not in (4, 7)]
    assert [line["answer"] for line in lines[:2]] == ["k0: q0", "k1: q1"]
    rejected = (tmp_path / "deep" / "a.rejected.jsonl").read_text().splitlines()
    assert [(e["key"], e["reason"]) for e in map(json.loads, rejected)] == [
        ("k4", "unplannable"),
        ("k7", "unreadable"),
    ]
    assert (done.num_answered, done.num_rejected, done.num_tokens) == (9, 2, 27)
    read = read_predictions(tmp_path / "deep" / "a.jsonl")
    assert not read.bad_lines
    assert read.by_key["k0"].max_pixels == 16
    assert read.by_key["k0"].num_visual_tokens == 0


def test_a_repeated_key_does_not_stop_the_first_from_being_asked_after_a_kill(tmp_path):
    path, output = tmp_path / "q.jsonl", tmp_path / "a.jsonl"
    lines = [{"key": key, "question": f"q{n}"} for n, key in enumerate("abac")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(KeyboardInterrupt):
        run(EchoEngine(fail_after=0), path, output)
    run(EchoEngine(), path, output)
    assert [json.loads(x)["key"] for x in output.read_text().splitlines()] == ["a", "b", "c"]
    (rejected,) = map(json.loads, (tmp_path / "a.rejected.jsonl").read_text().splitlines())
    assert rejected["key"] == "line 3"


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    path, output = tmp_path / "q.jsonl", tmp_path / "a.jsonl"
    path.write_text('{"key": "a", "question": "q"}\n', encoding="utf-8-sig")
    run(EchoEngine(), path, output)
    assert json.loads(output.read_text())["key"] == "a"
    assert not (tmp_path / "a.rejected.jsonl").exists()


def test_outputs_that_differ_in_their_last_suffix_share_no_file(questions, tmp_path):
    for name in ("x.v1", "x.v2"):
        run(EchoEngine(), questions, tmp_path / name)
    made = {path.name for path in tmp_path.glob("x.*")}
    assert made >= {"x.v1", "x.v1.settings.json", "x.v2", "x.v2.settings.json"}
    assert "x.settings.json" not in made


def test_a_key_that_was_rejected_is_not_asked_by_a_later_line(tmp_path):
    """It is rejected under its key, so that a start after a kill would not ask it either."""
    path, output = tmp_path / "q.jsonl", tmp_path / "a.jsonl"
    lines = [{"key": "a"}, {"key": "a", "question": "q1"}, {"key": "b", "question": "q2"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(EchoEngine(), path, tmp_path / "whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        run(EchoEngine(fail_after=0), path, output)
    run(EchoEngine(), path, output)
    for end in (".jsonl", ".rejected.jsonl"):
        assert (tmp_path / f"a{end}").read_bytes() == (tmp_path / f"whole{end}").read_bytes()
    rejected = (tmp_path / "a.rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in rejected] == ["a", "line 2"]


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b'{"model": "ec', b"[]"])
def test_damaged_settings_are_named(content, questions, tmp_path):
    run(EchoEngine(), questions, tmp_path / "a.jsonl")
    (tmp_path / "a.settings.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.settings\.json is damaged"):
        run(EchoEngine(), questions, tmp_path / "a.jsonl")


def test_lines_with_another_kind_of_key_are_no_answers(questions, tmp_path):
    run(EchoEngine(), questions, tmp_path / "a.jsonl")
    whole = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl").write_bytes(whole + b'{"key": [1], "answer": "x"}\n')
    run(EchoEngine(), questions, tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == whole


@pytest.mark.parametrize("fail_after", [0, 1, 2])
def test_a_killed_run_goes_on_to_the_same_file(fail_after, questions, tmp_path):
    run(EchoEngine(), questions, tmp_path / "whole.jsonl")
    output = tmp_path / "a.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(EchoEngine(fail_after=fail_after), questions, output)
    if fail_after:
        # the kill came while the last line was written
        output.write_bytes(output.read_bytes()[:-7])
    engine = EchoEngine()
    run(engine, questions, output)
    for end in (".jsonl", ".rejected.jsonl"):
        whole, resumed = (tmp_path / f"{name}{end}" for name in ("whole", "a"))
        assert resumed.read_bytes() == whole.read_bytes()
    answered = max(0, 3 * fail_after - 1)
    asked = [key for batch in engine.batches for key in batch]
    assert len(asked) == 9 - answered, "what is answered is not asked again"
    assert not run(EchoEngine(fail_after=0), questions, output).num_tokens, "nothing is left"


def test_a_request_that_the_engine_cannot_take_is_one_reject(tmp_path):
    path, output = tmp_path / "q.jsonl", tmp_path / "a.jsonl"
    lines = [{"key": key, "question": text} for key, text in (("a", "q"), ("b", "long"))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run(EchoEngine(), path, output)
    assert (done.num_answered, done.num_rejected, done.num_tokens) == (1, 1, 3)
    (rejected,) = map(json.loads, (tmp_path / "a.rejected.jsonl").read_text().splitlines())
    assert (rejected["key"], rejected["detail"]) == ("b", "it does not fit")


def test_teams_share_the_batches(questions, tmp_path):
    """Three leaders in threads over one store: each batch goes to one of them.

    All wait for each other once; each has then claimed two batches at most, so that there are
    enough for the slowest.
    """
    run(EchoEngine(), questions, tmp_path / "whole.jsonl", batch_size=1)
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=30))
    sizes, gate = ParallelSizes(replicas=3), threading.Barrier(3)
    engines = [EchoEngine(gate=gate) for _ in range(3)]
    output = tmp_path / "a.jsonl"

    def work(number: int) -> None:
        group = ReplicaGroup(is_leader=True, is_first=number == 0, store=store, sizes=sizes)
        run(engines[number], questions, output, group, batch_size=1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    asked = sorted(batch for engine in engines for batch in engine.batches)
    assert asked == sorted([f"k{n}"] for n in range(11) if n not in (4, 7))
    assert all(engine.batches for engine in engines)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_answers_of_other_settings_are_not_mixed(questions, tmp_path):
    output = tmp_path / "a.jsonl"
    run(EchoEngine(), questions, output)
    with pytest.raises(ValueError, match=r"begun with stop=\[\], now it is \['x'\]"):
        run(EchoEngine(), questions, output, stop=("x",))
    questions.write_text(questions.read_text().replace("q3", "another"))
    with pytest.raises(ValueError, match="begun with questions="):
        run(EchoEngine(), questions, output)
    strange = tmp_path / "b.jsonl"
    strange.write_text('{"key": "k0", "answer": "?"}\n')
    with pytest.raises(ValueError, match=r"without b\.settings\.json"):
        run(EchoEngine(), questions, strange)


def test_lines_in_all_their_forms(tmp_path):
    talk = [{"from": "human", "value": "<image>a?"}, {"from": "gpt", "value": "b"}]
    parts = [
        {"type": "image", "image": "/x/y.jpg"},
        {"type": "video", "video": "z.mp4"},
        {"type": "text", "text": "both?"},
    ]
    lines = [
        {"key": 1, "question": "q", "image": "a.jpg", "max_new_tokens": 3},
        {"id": "two", "conversations": talk, "images": ["a.jpg"]},
        {"sample_id": "three", "messages": [{"role": "user", "content": parts}]},
        {"key": "four", "question": "q", "videos": ["c.mp4"]},
        {"key": "four", "question": "again"},
        {"key": "five"},
        {"question": "no key"},
        {"key": "six", "messages": [{"role": "user", "content": [{"type": "sound"}]}]},
        {"key": "seven", "question": "q", "max_new_tokens": 0},
        {"key": "eight", "conversations": talk[1:]},
        {"key": "nine", "question": None},
        {"key": "ten", "question": " "},
        {"key": "eleven", "question": "q", "image": "https://a.b/c.jpg"},
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{no json\n[]\n\n")
    asked = FileRequests(path, max_new_tokens=9)
    one, two, three, four = asked
    assert asked.keys == ["1", "two", "three", "four"]
    assert (one.images, one.max_new_tokens) == ((tmp_path / "a.jpg",), 3)
    assert [turn.text for turn in two.turns] == ["<image>a?"]
    assert two.max_new_tokens == 9
    assert three.turns[0].text == "<image>\n<video>\nboth?"
    assert (three.images, three.videos) == ((Path("/x/y.jpg"),), (tmp_path / "z.mp4",))
    assert four.videos == (tmp_path / "c.mp4",)
    wrong = dict(asked.rejected)
    assert list(wrong) == [
        *["line 5", "five", "line 7", "six", "seven", "eight", "nine", "ten", "eleven"],
        *["line 14", "line 15"],
    ]
    assert "the key 'four' was there before" in str(wrong["line 5"])
    assert "https://a.b/c.jpg is an address" in str(wrong["eleven"])
    assert "max_new_tokens is 0" in str(wrong["seven"])
    assert FileRequests(path, max_new_tokens=9, limit=2).keys == ["1", "two"]
    assert FileRequests(path, max_new_tokens=8).digest != asked.digest
    path.write_text(path.read_text().replace("c.mp4", "d.mp4"))
    assert FileRequests(path, max_new_tokens=9).digest != asked.digest, "another video"
    path.write_text("{}\n")
    with pytest.raises(ValueError, match=r"asks nothing: line 1: .*expected a key"):
        FileRequests(path, max_new_tokens=9)


def test_items_of_a_benchmark_are_requests(tmp_path):
    (tmp_path / "p.jpg").write_bytes(b"picture")
    lines = [{"key": f"k{n}", "question": "q?", "answer": "a", "image": "p.jpg"} for n in range(3)]
    path = tmp_path / "qa.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = TaskRequests(find_task("qa"), path, limit=2)
    assert asked.keys == ["k0", "k1"]
    found = list(asked)
    assert [one.read() for one in found] == [((b"picture",), ())] * 2
    assert found[0].turns[0].text == "<image>\nq?"
    assert found[0].max_new_tokens == 32
    assert next(iter(TaskRequests(find_task("qa"), path, max_new_tokens=4))).max_new_tokens == 4


def test_a_lost_picture_of_a_benchmark_costs_one_question(tmp_path):
    pictures = [{"query": "?", "imgname": f"{name}.png", "label": "1"} for name in "abc"]
    (tmp_path / "test_human.json").write_text(json.dumps(pictures))
    (tmp_path / "png").mkdir()
    for name in "ac":
        (tmp_path / "png" / f"{name}.png").write_bytes(b"a picture")
    asked = TaskRequests(find_task("chartqa"), tmp_path)
    output = tmp_path / "a.jsonl"
    generate(EchoEngine(), asked, Journal(output), alone(), AnswerSettings(), batch_size=1)
    said = [json.loads(line)["key"] for line in output.read_text().splitlines()]
    assert said == ["human-0", "human-2"]
    (rejected,) = map(json.loads, (tmp_path / "a.rejected.jsonl").read_text().splitlines())
    assert (rejected["key"], rejected["reason"]) == ("human-1", "unreadable")
    assert "png/b.png" in rejected["detail"]
    (tmp_path / "png" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"image a\.png is in none of"):
        list(TaskRequests(find_task("chartqa"), tmp_path))


def test_layouts_fit_the_processes_that_there_are():
    assert parallel_sizes(2, 2, 3, {}) == ParallelSizes(tensor=2, pipeline=2, replicas=3)
    assert parallel_sizes(2, 2, 3, {}).num_processes == 12
    assert parallel_sizes(2, 1, None, {"WORLD_SIZE": "8"}).replicas == 4
    with pytest.raises(ValueError, match="torchrun started 6 processes; --tp 2 --pp 2 needs"):
        parallel_sizes(2, 2, None, {"WORLD_SIZE": "6"})
    with pytest.raises(ValueError, match="needs 4 for 2 workers"):
        parallel_sizes(2, 1, 2, {"WORLD_SIZE": "8"})


def test_a_damaged_folder_is_an_error_without_a_traceback(questions, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{")
    command = ["generate", str(tmp_path / "model"), "--input", str(questions)]
    done = invoke(*command, "--output", tmp_path / "a.jsonl")
    assert done.exit_code == 2
    assert "config.json" in "".join(done.output.replace("│", " ").split())
