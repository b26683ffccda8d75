"""A trained checkpoint answers on the device."""

from __future__ import annotations

import gpu_device
import pytest

from dct_vl.runs.run_files import read_json_lines


@pytest.fixture(scope="module")
def model(runs):
    """Of a DCT tokenizer, whose fixed basis stayed on the host once."""
    from dct_vl.inference.loading import load_checkpoint

    return load_checkpoint(runs.checkpoint("local", 4))


def test_all_of_a_loaded_model_is_on_the_device(model):
    assert model.device.type == gpu_device.KIND
    # Megatron keeps angles that it has not needed yet wherever it likes
    assert not gpu_device.elsewhere(model.module.vision_model)
    assert len(list(gpu_device.tensors_of(model.module.vision_model.front_end))) >= 7


def test_words_are_scored(model, tmp_path):
    from dct_vl.evaluation.forward_pass import write_words

    output = tmp_path / "words.jsonl"
    found = write_words(model, output, split="val", limit=6, batch_size=3)
    lines = list(read_json_lines(output))
    assert found.num_words == sum(line["num_words"] for line in lines) > 0
    assert len(lines) == 6
    assert any(line["num_visual_tokens"] for line in lines)
    assert not found.rejected.by_reason


def test_questions_are_answered(model, tmp_path):
    from dct_vl.inference.generate.answers import AnswerOptions, write_answers

    output = tmp_path / "answers.jsonl"
    options = AnswerOptions(limit=6, batch_size=4, max_new_tokens=6)
    found = write_answers(model, options, output)
    lines = list(read_json_lines(output))
    assert found.num_questions == len(lines) >= 6
    assert all(line["step"] == 4 for line in lines)
    assert not found.rejected.by_reason
