"""Greedy answers are transformers' own, and do not depend on who else is in the batch."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer

from data_prep.schema import Turn
from dct_tokenizer import build_tokenizer
from evaluation.answers import BLANK_LEVEL, AnswerOptions, questions_of, write_answers
from evaluation.held_out import read_split
from training.config.compose import compose_config

BOUNDS = {"min_pixels": 784, "max_pixels": 43904}
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def model(build_module, tiny_model, shards):
    """The tiny model as `load_checkpoint` would deliver it, filled from its folder."""
    from evaluation.loading import LoadedModel
    from training.data.chat import ChatTokenizer

    return LoadedModel(
        run=compose_config([f"data.path={shards}", f"model.path={tiny_model}", "tokenizer=pixel"]),
        step=0,
        module=build_module("pixel"),
        visual=build_tokenizer("pixel", **BOUNDS),
        chat=ChatTokenizer(AutoTokenizer.from_pretrained(tiny_model)),
    )


@pytest.fixture(scope="module")
def questions(shards):
    """The last question of each held-out sample: several turns, and two samples of text only."""
    last = {}
    for sample in read_split(str(shards), "val"):
        for _, question, _ in questions_of(sample, blank=False):
            last[sample.key] = question
    found = list(last.values())
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
    from evaluation.greedy import answer

    processor = AutoProcessor.from_pretrained(tiny_model, use_fast=False, **BOUNDS)
    ours = [given.text for given in answer(model, questions, NEW_TOKENS)]
    theirs = [reference_answer(processor, hf_model, q) for q in questions]
    assert ours == theirs
    assert len(set(theirs)) > len(theirs) // 2, "equal answers to all would prove little"


def test_a_batch_of_one_gives_the_same_answers(model, questions):
    from evaluation.greedy import answer

    together = answer(model, questions[:4], NEW_TOKENS)
    assert [answer(model, [q], NEW_TOKENS)[0] for q in questions[:4]] == together


def test_the_pictures_decide(model, questions):
    """Blank pictures have the same tokens and lead to other answers."""
    from evaluation.greedy import Question, answer

    seen = [q for q in questions if q.images]
    blank = [
        Question(
            key=q.key,
            turns=q.turns,
            images=q.images,
            frames=tuple(f * 0 + BLANK_LEVEL for f in q.frames),
        )
        for q in seen
    ]
    real, guessed = (answer(model, asked, NEW_TOKENS) for asked in (seen, blank))
    assert [a.num_visual_tokens for a in real] == [a.num_visual_tokens for a in guessed]
    assert all(a.num_visual_tokens >= 16 for a in real)
    assert [a.text for a in real] != [a.text for a in guessed]


def test_every_assistant_turn_is_a_question_with_true_answers_before_it(shards):
    sample = next(s for s in read_split(str(shards), "val") if len(s.record.turns) > 4)
    asked = list(questions_of(sample, blank=False))
    assert [turn for turn, _, _ in asked] == list(range(1, len(sample.record.turns), 2))
    for turn, question, truth in asked:
        assert question.turns == sample.record.turns[:turn]
        assert truth == sample.record.turns[turn].text
    assert asked[1][1].turns[1] == Turn(role="assistant", text=asked[0][2])
    for _, question, _ in questions_of(sample, blank=True):
        assert all((frames == BLANK_LEVEL).all() for frames in question.frames)
        assert question.images == sample.images


def test_exact_answers_are_counted(model, tmp_path):
    share = write_answers(
        model, AnswerOptions(limit=3, batch_size=5, max_new_tokens=2), tmp_path / "a" / "b.jsonl"
    )
    lines = (tmp_path / "a" / "b.jsonl").read_text().splitlines()
    assert len(lines) > 5, "more than one batch"
    correct = sum('"correct":true' in line for line in lines)
    assert share == correct / len(lines)


def test_a_split_is_read_once_in_its_order(shards):
    keys = [sample.key for sample in read_split(str(shards), "test")]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys) > 5
    assert [s.key for s in read_split(str(shards), "test", limit=2)] == keys[:2]
    held = {s.key for part in ("val", "train") for s in read_split(str(shards), part)}
    assert not held & set(keys)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    from evaluation.loading import find_checkpoint

    with pytest.raises(ValueError, match=r"is neither a checkpoint \(step-…\) nor a run's folder"):
        find_checkpoint(tmp_path)
