"""What is wrong with a model's config.json."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dct_vl.errors import ConfigError
from dct_vl.model.families.qwen_vl.config import check_model_file, model_faults

#: of Qwen2-VL-2B's file
GOOD: dict[str, Any] = {
    "model_type": "qwen2_vl",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {"patch_size": 14, "spatial_patch_size": 14, "temporal_patch_size": 2},
}


@pytest.mark.parametrize("kind", ["tiny_model", "tiny_model_25"])
def test_good_files(kind, request):
    assert model_faults(GOOD) == []
    check_model_file(str(request.getfixturevalue(kind)))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"hidden_size": None}, "hidden_size is None"),
        ({"num_hidden_layers": "four"}, "num_hidden_layers is 'four'"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"num_attention_heads": 5}, "hidden_size=1536 cannot be divided into 5 heads"),
        ({"num_key_value_heads": 5}, "num_key_value_heads=5 does not divide num_attention_heads=1"),
        ({"rope_scaling": None}, "mrope_section is None; expected three numbers that make up 64"),
        ({"rope_scaling": {"mrope_section": [16, 24, 25]}}, "[16, 24, 25]; expected three"),
        ({"rope_scaling": {"mrope_section": [32, 32]}}, "[32, 32]; expected three"),
        ({"vision_config": {"patch_size": 16}}, "vision_config.patch_size is 16; expected 14"),
        ({"vision_config": None}, "vision_config is missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_fault_is_named(change, fault):
    (found,) = model_faults({**GOOD, **change})
    assert fault in found


def test_all_faults_are_listed_with_the_file(tmp_path):
    check_model_file(str(tmp_path))  # nothing there yet
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "qwen2_vl", "hidden_size": 1.5}))
    with pytest.raises(ConfigError) as caught:
        check_model_file(str(tmp_path))
    assert str(caught.value).startswith(f"{file} cannot be used: hidden_size is 1.5; ")
    assert str(caught.value).endswith("; vocab_size is missing; vision_config is missing")


@pytest.mark.parametrize(("text", "why"), [("{", "is no JSON"), ("[]", "it is no JSON object")])
def test_what_is_no_object(tmp_path, text, why):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=why):
        check_model_file(str(tmp_path))


def test_the_layout_of_later_transformers_is_named():
    """They put the language model's fields into an object of its own; 4.51.3 would not see them."""
    later = {"model_type": "qwen2_vl", "vision_config": {}, "text_config": GOOD}
    (found,) = model_faults(later)
    assert "lie in text_config" in found


def test_a_text_tokenizer_that_is_damaged(tiny_model, tmp_path):
    import shutil

    from dct_vl.inputs.chat import read_text_tokenizer

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"model cannot be read .*fetch them again"):
        read_text_tokenizer(folder)
    assert read_text_tokenizer(tiny_model)("ok").input_ids
