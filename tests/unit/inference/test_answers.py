"""Greedy answers are transformers' own, and do not depend on who else is in the batch."""

from __future__ import annotations

import gc
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from trainers_side import loaded, replies
from transformers import AutoProcessor

from data_prep.schema import Turn
from dct_tokenizer import build_tokenizer
from dct_vl.inference.generate.answers import AnswerOptions, questions_of, write_answers
from dct_vl.inference.generate.engine import encode_request
from dct_vl.inference.generate.journal import Journal
from dct_vl.inputs.encode import BLANK_LEVEL
from dct_vl.inputs.shard_reader import read_split

BOUNDS = {"min_pixels": 784, "max_pixels": 43904}
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def model(build_module, tiny_model, shards, tmp_path_factory):
    """The tiny model as `load_checkpoint` would deliver it, filled from its folder."""
    return loaded(
        build_module("pixel"),
        build_tokenizer("pixel", **BOUNDS),
        tiny_model,
        data=shards,
        checkpoint=tmp_path_factory.mktemp("checkpoint") / "step",
    )


@pytest.fixture(scope="module")
def questions(shards):
    """The last question of each held-out sample: several turns, and two samples of text only."""
    found = [
        questions_of(sample, 0, NEW_TOKENS)[-1].request for sample in read_split(str(shards), "val")
    ]
    assert {len(q.images) for q in found} == {0, 1}
    assert len({len(q.turns) for q in found}) > 1
    return found


def reference_answer(processor, hf_model, question) -> str:
    content = []
    for turn in question.turns:
        pieces = turn.text.split("<image>")
        parts = [{"type": "text", "text": p.strip("\n")} for p in pieces if p.strip("\n")]
        if len(pieces) > 1:
            parts.insert(0 if turn.text.startswith("<image>") else len(parts), {"type": "image"})
        content.append({"role": turn.role, "content": parts})
    text = processor.apply_chat_template(content, tokenize=False, add_generation_prompt=True)
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in question.images]
    inputs = processor(text=[text], images=images or None, return_tensors="pt")
    with torch.no_grad():
        ids = hf_model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_answers_equal_transformers_generate(model, questions, tiny_model, hf_model):
    processor = AutoProcessor.from_pretrained(tiny_model, use_fast=False, **BOUNDS)
    ours = [given.text for given in replies(model, questions)]
    theirs = [reference_answer(processor, hf_model, q) for q in questions]
    assert ours == theirs
    assert len(set(theirs)) > len(theirs) // 2, "equal answers to all would prove little"


def test_a_batch_of_one_gives_the_same_answers(model, questions):
    together = replies(model, questions[:4])
    assert [replies(model, [q])[0] for q in questions[:4]] == together


def test_the_pictures_decide(model, questions):
    """Blank pictures have the same tokens and lead to other answers."""
    seen = [q for q in questions if q.images]
    real, guessed = (replies(model, seen, is_blank=blank) for blank in (False, True))
    assert [a.num_visual_tokens for a in real] == [a.num_visual_tokens for a in guessed]
    assert all(a.num_visual_tokens >= 16 for a in real)
    assert [a.text for a in real] != [a.text for a in guessed]


def test_every_assistant_turn_is_a_question_with_true_answers_before_it(shards, model):
    sample = next(s for s in read_split(str(shards), "val") if len(s.record.turns) > 4)
    asked = questions_of(sample, 0)
    assert [one.line["turn"] for one in asked] == list(range(1, len(sample.record.turns), 2))
    for one in asked:
        turn = one.line["turn"]
        assert one.request.turns == sample.record.turns[:turn]
        assert one.line["truth"] == sample.record.turns[turn].text
    assert asked[1].request.turns[1] == Turn(role="assistant", text=asked[0].line["truth"])
    for one in asked:
        assert one.request.images == sample.images
        blank = encode_request(model, one.request, is_blank=True)
        assert (blank.visual.cells == BLANK_LEVEL).all()


def test_exact_answers_are_counted(model, tmp_path):
    done = write_answers(
        model, AnswerOptions(limit=3, batch_size=5, max_new_tokens=2), tmp_path / "a" / "b.jsonl"
    )
    lines = (tmp_path / "a" / "b.jsonl").read_text().splitlines()
    assert len(lines) > 5, "more than one batch"
    correct = sum('"correct":true' in line for line in lines)
    assert (done.num_questions, done.num_correct) == (len(lines), correct)
    assert done.share == correct / len(lines)
    assert not done.rejected.by_reason
    assert not (tmp_path / "a" / "b.rejected.jsonl").exists()


@pytest.fixture(scope="module")
def odd_shards(tmp_path_factory) -> Path:
    """A prepared folder with one sound sample, one with marks in two turns, and broken ones."""
    folder = tmp_path_factory.mktemp("odd")
    picture = io.BytesIO()
    Image.effect_noise((84, 56), 60).convert("RGB").save(picture, "JPEG")
    whole = picture.getvalue()
    small = io.BytesIO()
    Image.new("RGB", (56, 56), "red").save(small, "JPEG")

    def talk(*texts: str) -> bytes:
        roles = ("human", "gpt") * len(texts)
        turns = [{"from": r, "value": t} for r, t in zip(roles, texts, strict=False)]
        return json.dumps({"conversations": turns}).encode()

    samples = {
        "a-sound": {"json": talk("<image>What?", "A b"), "jpg": whole},
        "b-later": {
            "json": talk("<image>One?", "Yes", "<image>And this?", "No"),
            "0.jpg": whole,
            "1.jpg": small.getvalue(),
        },
        "c-cut": {"json": talk("<image>What?", "A"), "jpg": whole[: len(whole) // 2]},
        "d-header": {"json": talk("<image>What?", "A"), "jpg": b"no picture"},
        "e-marks": {"json": talk("<image>What?", "A", "<image>", "B"), "jpg": whole},
        "f-schema": {"json": b"{}", "jpg": whole},
        "g-silent": {"json": talk("<image>What?"), "jpg": whole},
        "h-narrow": {"json": talk("<image>What?", "A"), "jpg": _strip()},
    }
    for_training = {"sound": samples["a-sound"]}
    for_test = {"cut": samples["c-cut"], "silent": samples["g-silent"]}
    for number, held in enumerate((for_training, samples, for_test)):
        with tarfile.open(folder / f"s-{number:06d}.tar", "w") as tar:
            for key, parts in held.items():
                for part, data in parts.items():
                    member = tarfile.TarInfo(f"{key}.{part}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    # plainly, without the look into every picture that `python -m data_prep prepare` takes
    command = [sys.executable, "-c", "from megatron.energon.cli.main import main; main()"]
    command += ["prepare", str(folder), "--non-interactive", "--split-ratio", "1,1,1"]
    command += ["--sample-type", "CrudeWebdataset", "--num-workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def _strip() -> bytes:
    """One pixel high and longer than the model takes."""
    data = io.BytesIO()
    Image.new("RGB", (300, 1)).save(data, "PNG")
    return data.getvalue()


def test_samples_that_cannot_be_asked_about_are_listed(model, odd_shards, tmp_path):
    """Where training leaves a sample out, its reason is the same; the others are answered."""
    from dct_vl.inference.loading import with_data_path

    odd = with_data_path(model, str(odd_shards))
    done = write_answers(odd, AnswerOptions(max_new_tokens=1), tmp_path / "val.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "val.jsonl").read_text().splitlines()]
    assert [(line["key"], line["turn"]) for line in lines] == [
        *(("a-sound", 1), ("b-later", 1), ("b-later", 3))
    ]
    first, second = (line["num_visual_tokens"] for line in lines[1:])
    assert (first, second) == (6, 6 + 4), "a question has the pictures of its turns"
    listed = (tmp_path / "val.rejected.jsonl").read_text().splitlines()
    assert {(e := json.loads(line))["key"]: e["reason"] for line in listed} == {
        "c-cut": "undecodable",
        "d-header": "undecodable",
        "e-marks": "image_count",
        "f-schema": "schema",
        "g-silent": "no_answer",
        "h-narrow": "unplannable",
    }
    assert str(done.rejected).startswith("6 samples rejected (undecodable 2, ")


def test_words_and_speed_leave_out_what_training_would(model, odd_shards, tmp_path):
    from dct_vl.evaluation.forward_pass import write_speed, write_words
    from dct_vl.inference.loading import with_data_path

    odd = with_data_path(model, str(odd_shards))
    read = write_words(odd, tmp_path / "words.jsonl", split="val", limit=None, batch_size=64)
    lines = [json.loads(line) for line in (tmp_path / "words.jsonl").read_text().splitlines()]
    assert [(line["key"], line["step"]) for line in lines] == [("a-sound", 0), ("b-later", 0)]
    assert read.num_words == sum(line["num_words"] for line in lines) > 0
    listed = (tmp_path / "words.rejected.jsonl").read_text().splitlines()
    assert len(listed) == 6
    assert str(read.rejected).startswith("6 samples rejected (undecodable 2, ")

    write_speed(odd, tmp_path / "speed.json", split="val", batch_size=5)
    assert json.loads((tmp_path / "speed.json").read_text())["batch_size"] == 2
    for write in (write_words, write_speed):
        more = {"limit": None} if write is write_words else {}
        with pytest.raises(ValueError, match=r"undecodable 1|would take; cut"):
            write(odd, tmp_path / "none", split="test", batch_size=5, **more)
    assert not list(tmp_path.glob("none*.partial"))


def test_nothing_to_ask_is_an_error(model, odd_shards, tmp_path):
    from dct_vl.inference.loading import with_data_path

    odd = with_data_path(model, str(odd_shards))
    with pytest.raises(ValueError, match="the test split has no question: 2 samples rejected"):
        write_answers(odd, AnswerOptions(split="test"), tmp_path / "test.jsonl")


@pytest.fixture
def kill_after(monkeypatch):
    """kill_after(n): a block in which the process is ended when it is to write answer n + 1."""

    @contextmanager
    def limited(num_answers: int) -> Iterator[None]:
        add, answers = Journal.add, iter(range(num_answers))

        def killed(*arguments):
            if next(answers, None) is None:
                raise KeyboardInterrupt
            return add(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(Journal, "add", killed)
            yield

    return limited


def test_answers_are_there_whole_or_not_at_all(model, tmp_path, kill_after):
    output = tmp_path / "val.jsonl"
    write_answers(model, AnswerOptions(limit=1, max_new_tokens=2), output)
    before = output.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["val.jsonl"]
    options = AnswerOptions(limit=4, batch_size=1, max_new_tokens=2)
    with kill_after(1), pytest.raises(KeyboardInterrupt):
        write_answers(model, options, output)
    gc.collect()  # unlike a process that is gone, this one may still hold the interrupted reader
    assert output.read_bytes() == before


def test_a_second_start_goes_on_to_the_same_file(model, tmp_path, kill_after):
    options = AnswerOptions(limit=4, batch_size=2, max_new_tokens=2)
    write_answers(model, options, tmp_path / "whole.jsonl")
    whole, output = (tmp_path / "whole.jsonl").read_bytes(), tmp_path / "val.jsonl"
    num_answers = len(whole.splitlines())
    with kill_after(4), pytest.raises(KeyboardInterrupt):
        write_answers(model, options, output)
    gc.collect()  # unlike a process that is gone, this one may still hold the interrupted reader
    assert not output.exists()
    partial = output.with_name("val.jsonl.partial")
    assert len(partial.read_bytes().splitlines()) == 4
    with kill_after(num_answers - 4):
        write_answers(model, options, output)
    assert output.read_bytes() == whole
    with kill_after(1), pytest.raises(KeyboardInterrupt):
        write_answers(model, options, output)
    gc.collect()  # unlike a process that is gone, this one may still hold the interrupted reader
    # begun with pictures: what others say of blank ones is asked from the start
    write_answers(model, replace(options, blank=True), output)
    write_answers(model, replace(options, blank=True), tmp_path / "blank.jsonl")
    assert output.read_bytes() == (tmp_path / "blank.jsonl").read_bytes() != whole
    assert {path.name for path in tmp_path.iterdir()} == {
        *("whole.jsonl", "val.jsonl", "blank.jsonl")
    }


def test_a_split_is_read_once_in_its_order(shards):
    keys = [sample.key for sample in read_split(str(shards), "test")]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys) > 5
    assert [s.key for s in read_split(str(shards), "test", limit=2)] == keys[:2]
    held = {s.key for part in ("val", "train") for s in read_split(str(shards), part)}
    assert not held & set(keys)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    from dct_vl.inference.loading import find_checkpoint

    with pytest.raises(ValueError, match=r"is neither a checkpoint \(step-…\) nor a run's folder"):
        find_checkpoint(tmp_path)
