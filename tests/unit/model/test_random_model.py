"""A random model's folder loads with plain transformers and has the hub's token roles."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Qwen2TokenizerFast,
)
from typer.testing import CliRunner

from data_prep.drawn.drawing import COLORS, POSITIONS, SHAPES, WORDS
from dct_vl.model.random_model import TinyShape, write_random_model
from dct_vl.model.random_model.shapes import config_2b
from dct_vl.model.random_model.special_tokens import FIRST_SPECIAL_ID_2B, SPECIAL_TOKENS
from dct_vl.model.random_model.tokenizer import train_tokenizer
from dct_vl.verbs.random_model import random_model as command

ANSWERS = (*COLORS, *POSITIONS, *SHAPES, *WORDS, *map(str, range(10)))
CORPUS = [f"What is the answer? Where is it?\n{answer}" for answer in ANSWERS] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("tiny"), corpus=CORPUS, seed=1)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def test_tokenizer_is_a_qwen2_tokenizer_with_the_special_tokens_in_order(tokenizer, folder):
    assert isinstance(tokenizer, Qwen2TokenizerFast)
    first = tokenizer.vocab_size
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == list(range(first, first + len(SPECIAL_TOKENS)))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    for token, number in zip(SPECIAL_TOKENS, ids, strict=True):
        assert tokenizer(f"a{token}b")["input_ids"][1] == number
        assert tokenizer.decode([number], skip_special_tokens=True) == ""
    config = AutoConfig.from_pretrained(folder)
    assert config.vocab_size % 128 == 0
    assert config.vocab_size >= len(tokenizer)
    roles = {
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "eos_token_id": "<|im_end|>",
    }
    for role, token in roles.items():
        assert getattr(config, role) == tokenizer.convert_tokens_to_ids(token), role


@pytest.mark.parametrize("text", ["Grüße, 你好!\n\n  tabs\tand 1234 numbers", "", "🙂 can't "])
def test_any_text_survives_the_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_answers_are_short(tokenizer):
    lengths = {answer: len(tokenizer(answer)["input_ids"]) for answer in ANSWERS}
    assert max(lengths.values()) <= 3, lengths
    assert len(tokenizer("\nYou are a helpful assistant.")["input_ids"]) <= 7


def test_slow_tokenizer_and_vocabulary_files_agree(folder, tokenizer):
    slow = AutoTokenizer.from_pretrained(folder, use_fast=False)
    text = "<|im_start|>user\nWhere is the top left tiger 42?<|im_end|>\n"
    assert slow(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_chat_template_renders_qwen2_vl_conversations(folder):
    processor = AutoProcessor.from_pretrained(folder)
    picture, clip = {"type": "image"}, {"type": "video"}
    messages = [
        {"role": "user", "content": [picture, clip, picture, {"type": "text", "text": " Hi\n"}]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "And?"},
    ]
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    video = "<|vision_start|><|video_pad|><|vision_end|>"
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    rest = (
        "<|im_start|>assistant\nred<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    plain = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    head = f"{system}<|im_start|>user\n"
    assert plain == f"{head}{image}{video}{image} Hi\n<|im_end|>\n{rest}"
    numbered = processor.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, add_vision_id=True
    )
    labels = f"Picture 1: {image}Video 1: {video}Picture 2: {image}"
    assert numbered == f"{head}{labels} Hi\n<|im_end|>\n{rest}"
    own = [{"role": "system", "content": "Be brief."}, *messages[2:]]
    without = processor.apply_chat_template(own, tokenize=False)
    assert without == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n"
    )


def test_forward_and_generate_with_pictures(folder):
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is it?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    pictures = [Image.new("RGB", (168, 112), "red"), Image.new("RGB", (56, 84), "blue")]
    batch = processor(text=[text], images=pictures, return_tensors="pt")
    assert (batch["input_ids"] == model.config.image_token_id).sum() == 6 * 4 + 2 * 3
    with torch.no_grad():
        logits = model(**batch).logits
        batch["pixel_values"] = batch["pixel_values"] + 1.0
        changed = model(**batch).logits
    assert logits.shape == (1, batch["input_ids"].shape[1], model.config.vocab_size)
    assert torch.isfinite(logits).all()
    assert not torch.equal(logits[0, -1], changed[0, -1])
    generated = model.generate(**batch, max_new_tokens=2, min_new_tokens=2)
    assert generated.shape[1] == batch["input_ids"].shape[1] + 2


def test_weights_have_the_stated_distribution(folder):
    weights = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights, "tied to the embedding, as in the hub's 2B"
    for name, tensor in weights.items():
        if name.endswith(".bias"):
            assert not tensor.any(), name
        elif tensor.ndim == 1:
            assert (tensor == 1).all(), name
        else:
            assert tensor.std().item() == pytest.approx(0.05, rel=0.05), name


def test_files_depend_on_the_seed_alone(folder, tmp_path):
    again = write_random_model(tmp_path / "again", corpus=CORPUS, seed=1)
    assert {path.name for path in again.iterdir()} == {path.name for path in folder.iterdir()}
    for path in folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    other = write_random_model(tmp_path / "other", corpus=CORPUS, seed=2)
    name = "model.safetensors"
    assert (other / name).read_bytes() != (folder / name).read_bytes()


def test_shape_and_dtype_are_options(tmp_path):
    shape = TinyShape(
        hidden_size=64, num_heads=2, num_kv_heads=1, num_layers=1, vision_depth=1, init_std=0.1
    )
    write_random_model(tmp_path, corpus=CORPUS, shape=shape, dtype=torch.bfloat16)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, torch_dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.config.hidden_size == model.config.vision_config.hidden_size == 64
    assert model.config.rope_scaling["mrope_section"] == [4, 6, 6]
    assert model.model.embed_tokens.weight.float().std().item() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 130}, "hidden_size is 130"),
        ({"num_kv_heads": 3}, "num_heads is 4"),
        ({"hidden_size": 96}, "is 24: M-RoPE"),
        ({"vision_embed_dim": 120}, "is 30: the 2-D"),
        ({"max_bpe_size": 100}, "max_bpe_size is 100"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        TinyShape(**sizes)


def test_unknown_shape_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'7b'"):
        write_random_model(tmp_path, corpus=CORPUS, shape="7b")  # type: ignore[arg-type]


def test_2b_config_has_the_real_sizes_and_parameter_count():
    config = config_2b()
    assert config.rope_scaling["mrope_section"] == [16, 24, 24]
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    model.tie_weights()
    assert config.initializer_range == 0.02
    # The hub states 2.21 B for Qwen2-VL-2B-Instruct.
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_208_985_600


def test_the_tiny_newer_model_loads_like_the_hubs(tmp_path):
    write_random_model(tmp_path, corpus=CORPUS, shape="tiny25")
    model, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert model.visual.fullatt_block_indexes == [1, 3]
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    text = processor.apply_chat_template([message], tokenize=False)
    batch = processor(text=[text], images=[Image.new("RGB", (168, 84))], return_tensors="pt")
    with torch.no_grad():
        assert torch.isfinite(model(**batch).logits).all()


def test_2b_tokenizer_has_the_ids_of_the_hub(tmp_path):
    train_tokenizer(
        CORPUS, max_bpe_size=1024, first_special_id=FIRST_SPECIAL_ID_2B
    ).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    config = config_2b()
    expected = {
        "<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645,
        "<|vision_start|>": 151652, "<|vision_end|>": 151653, "<|vision_pad|>": 151654,
        "<|image_pad|>": 151655, "<|video_pad|>": 151656,
    }  # fmt: skip
    for token, number in expected.items():
        assert tokenizer(token)["input_ids"] == [number]
    assert (config.image_token_id, config.video_token_id) == (151655, 151656)
    assert tokenizer.vocab_size == FIRST_SPECIAL_ID_2B
    assert max(tokenizer("top left 7 <|unused_5|>")["input_ids"]) < 1024


def test_first_special_id_inside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="first_special_id is 10"):
        train_tokenizer(CORPUS, max_bpe_size=512, first_special_id=10)


def test_command_trains_on_the_conversations_of_a_json(tmp_path):
    corpus = tmp_path / "talk.json"
    talk = [{"from": "human", "value": "<image>\nzebras?"}, {"from": "gpt", "value": "giraffes"}]
    corpus.write_text(json.dumps([{"conversations": talk}] * 5))
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [str(tmp_path / "out"), "--corpus", str(corpus)])
    assert result.exit_code == 0, result.output
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer("giraffes")["input_ids"]) == 1
    corpus.write_text("{]")
    broken = CliRunner().invoke(app, [str(tmp_path / "out"), "--corpus", str(corpus)])
    assert broken.exit_code == 2
    # the error's frame breaks long paths anywhere
    assert "talk.json" in re.sub(r"[\s│]", "", broken.output)
