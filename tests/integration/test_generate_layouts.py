"""Answers of one checkpoint, however its model is divided, and of its export."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import invoke

from dct_vl.inputs.shard_reader import read_split

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def questions(shards, tmp_path_factory) -> Path:
    """First questions of conversations about no, one and several drawn pictures, four of each."""
    folder = tmp_path_factory.mktemp("questions")
    asked: dict[int, list[dict]] = {}
    for sample in read_split(str(shards), "train"):
        place = asked.setdefault(len(sample.images), [])
        if len(place) == 4:
            continue
        for number, data in enumerate(sample.images):
            (folder / f"{sample.key}.{number}").write_bytes(data)
        question = sample.record.turns[0].text
        images = [f"{sample.key}.{number}" for number in range(len(sample.images))]
        place.append({"key": sample.key, "question": question, "images": images})
    lines = [line for place in asked.values() for line in place]
    assert len(asked) > 2
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def generate(grid, train, questions):
    """generate(output, *options, model=the run on four ranks) → lines by the command line.

    What takes one process runs in this one, which saves its start.
    """

    def run(output: Path, *options: str, model: Path = grid.folder) -> list[dict]:
        command = [
            *("generate", str(model), "--input", str(questions), "--output", str(output)),
            *("--batch-size", "5", "--max-new-tokens", "8", *options),
        ]
        if not options:
            done = invoke(*command)
            assert done.exit_code == 0, done.output
        else:
            started = subprocess.run(
                [sys.executable, "-m", "dct_vl", *command],
                capture_output=True,
                text=True,
                cwd=ROOT,
                env=train.environ(),
            )
            assert started.returncode == 0, started.stderr[-6000:]
        return [json.loads(line) for line in output.read_text().splitlines()]

    return run


@pytest.fixture(scope="module")
def answers(generate, tmp_path_factory) -> Path:
    """Answers of one process that holds the model whole."""
    path = tmp_path_factory.mktemp("whole") / "answers.jsonl"
    generate(path)
    return path


@pytest.fixture(scope="module")
def whole(answers) -> list[dict]:
    return [json.loads(line) for line in answers.read_text().splitlines()]


def test_one_process_answers_for_a_checkpoint_of_four_ranks(whole, questions):
    keys = [json.loads(line)["key"] for line in questions.read_text().splitlines()]
    assert [line["key"] for line in whole] == keys
    assert len({line["answer"] for line in whole}) > len(whole) // 2, "equal answers prove little"
    assert {line["num_visual_tokens"] > 0 for line in whole} == {True, False}
    assert all(line["num_tokens"] for line in whole)


def test_tensor_parallel_ranks_say_the_same(generate, whole, tmp_path):
    assert generate(tmp_path / "a.jsonl", "--tp", "2") == whole


def test_tensor_and_pipeline_parallel_ranks_say_the_same(generate, whole, tmp_path):
    assert generate(tmp_path / "a.jsonl", "--tp", "2", "--pp", "2") == whole


def test_two_workers_go_on_where_another_one_was_killed(generate, answers, whole, tmp_path):
    output = tmp_path / "a.jsonl"
    shutil.copy(answers.with_suffix(".settings.json"), output.with_suffix(".settings.json"))
    lines = answers.read_bytes().splitlines(keepends=True)
    output.write_bytes(lines[6] + lines[1] + lines[2][:-9])
    assert generate(output, "--workers", "2") == whole
    assert output.read_bytes() == answers.read_bytes()


def test_transformers_say_the_same(generate, whole, grid_in_transformers, tmp_path):
    assert generate(tmp_path / "a.jsonl", model=grid_in_transformers) == whole
