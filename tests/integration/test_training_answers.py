"""Checkpoints of any layout answer questions in one process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dct_vl.evaluation.compare.study import read_run
from dct_vl.evaluation.forward_pass import write_speed, write_words
from dct_vl.inference.generate.answers import AnswerOptions, write_answers
from dct_vl.inference.loading import load_checkpoint
from dct_vl.runs.run_files import VALIDATION_NAME, read_json_lines

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
#: twice what three steps at learning rates of up to 3e-4 can move a weight. Weights without a
#: gradient (a key's bias) go where rounding sends them; a swapped shard differs by 0.1.
MOST_APART = 2e-3


def test_a_tensor_parallel_checkpoint_has_the_weights_of_the_whole_one(tensor_parallel, reference):
    split, whole = (load_checkpoint(run.checkpoint(3)) for run in (tensor_parallel, reference))
    assert split.step == whole.step == 3
    expected = dict(whole.module.named_parameters())
    for name, parameter in split.module.named_parameters():
        assert (parameter - expected[name]).abs().max() < MOST_APART, name


def test_a_tensor_parallel_checkpoint_answers_as_the_whole_one(
    tensor_parallel, reference, shards, tmp_path
):
    """The first through the command line, the second through the library."""
    output = tmp_path / "split.jsonl"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "dct_vl", "answers", str(tensor_parallel.checkpoint(3))),
            *("--output", str(output), "--limit", "6", "--batch-size", "7"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "step 3, val" in done.stdout
    whole = tmp_path / "whole.jsonl"
    write_answers(load_checkpoint(reference.checkpoint(3)), AnswerOptions(limit=6), whole)
    lines = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [json.loads(line) for line in output.read_text().splitlines()] == lines
    assert len(lines) > 6, "a question each turn"
    assert len({line["answer"] for line in lines}) > 2, "equal answers to all prove little"
    assert any(line["num_visual_tokens"] for line in lines)


def test_words_of_a_checkpoint_are_those_of_its_validation(reference, tmp_path):
    """Scored sample by sample from the shards, and batch by batch while the run was training."""
    (seen,) = (e for e in read_json_lines(reference.folder / VALIDATION_NAME) if e["step"] == 3)
    output = tmp_path / "words.jsonl"
    model = load_checkpoint(reference.checkpoint(3))
    read = write_words(model, output, split="val", limit=4, batch_size=3)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(lines) == 4, "two validation batches, each a micro batch of two samples"
    assert sum(line["num_words"] for line in lines) == seen["num_words"] > 8
    assert read.share == pytest.approx(seen["word_accuracy"])
    assert {line["source"] for line in lines} == {"shapes"}


def test_a_pass_is_timed_alone_and_the_study_takes_that_time(reference, tmp_path):
    model = load_checkpoint(reference.checkpoint(3))
    gradients = []
    first = next(model.module.parameters())
    first.register_hook(lambda grad: gradients.append(float(grad.abs().sum())))
    output = tmp_path / "speed.json"
    speed = write_speed(model, output, split="val", batch_size=3)
    line = json.loads(output.read_text())
    assert line["samples_per_second"] == speed > 0
    assert (line["batch_size"], line["device"]) == (3, "cpu")
    assert line["visual_tokens"] > 0
    assert len(gradients) == 13, "each pass goes back to the first layer"
    assert min(gradients) > 0
    assert first.grad is None

    run = tmp_path / "run"
    shutil.copytree(reference.folder, run)
    last = load_checkpoint(run)
    write_words(last, run / "words.jsonl", split="val", limit=4, batch_size=4)
    trained = read_run(run, (112, 112))
    assert trained.measured_speed is None
    assert trained.training_speed > 0
    (run / "speed.json").write_text('{"samples_per_second": 123.0}')
    assert read_run(run, (112, 112)).measured_speed == 123.0

    write_words(model, run / "words.jsonl", split="val", limit=4, batch_size=4)
    with pytest.raises(ValueError, match="scored at step 3, and the run is at step 6: score it"):
        read_run(run, (112, 112))


def test_a_split_without_samples_has_no_speed(reference, tmp_path):
    model = load_checkpoint(reference.checkpoint(3))
    with pytest.raises(ValueError, match="no sample"):
        write_speed(model, tmp_path / "speed.json", split="val", batch_size=0)
