"""Plain Hugging Face folders: every tensor bit by bit, and transformers' own answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from trainers_side import loaded, prompt_logits, question
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2VLForConditionalGeneration

from dct_tokenizer import build_tokenizer
from dct_vl.export.checkpoint import export_module
from dct_vl.export.folder import copy_text_files
from dct_vl.export.tensors import ExportError
from dct_vl.model.families.qwen_vl.weights import PATCH_EMBED

BOUNDS = {"min_pixels": 4 * 28 * 28, "max_pixels": 12 * 28 * 28}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's safetensors files."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def untied(tiny_model, tmp_path_factory) -> Path:
    """The tiny model in bf16 with an output matrix of its own."""
    folder = tmp_path_factory.mktemp("untied")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    model = Qwen2VLForConditionalGeneration.from_pretrained(tiny_model, torch_dtype=torch.bfloat16)
    model.config.tie_word_embeddings = False
    head = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(7))
    model.lm_head.weight = torch.nn.Parameter(head.bfloat16())
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("tiny_model", torch.float32),
        ("untied", torch.bfloat16),
        ("tiny_model_25", torch.float32),
    ],
)
def test_every_tensor_comes_back_bit_by_bit(kind, dtype, request, build_module, tmp_path):
    base = request.getfixturevalue(kind)
    visual = build_tokenizer("pixel", **BOUNDS)
    out = tmp_path / "out"
    export_module(
        build_module("pixel", base),
        visual,
        base,
        out,
        dtype=dtype,
        max_shard_bytes=60_000,
    )
    expected, found = weights(base), weights(out)
    assert ("lm_head.weight" in found) == (kind == "untied")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, expected[name]), name
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == expected.keys()
    assert len(set(index["weight_map"].values())) > 2
    settings = json.loads((out / "config.json").read_text())
    assert settings.keys() == json.loads((base / "config.json").read_text()).keys()
    stock = json.loads((base / "config.json").read_text())
    assert (settings["architectures"], settings["model_type"]) == (
        stock["architectures"],
        stock["model_type"],
    )
    assert settings["torch_dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize(
    ("preset", "kind"),
    [
        ("pixel", "tiny_model"),
        ("dct14", "tiny_model"),
        ("dct14_k10", "tiny_model"),
        ("dct14", "tiny_model_25"),
    ],
)
def test_plain_transformers_computes_the_same(preset, kind, request, build_module, tmp_path):
    folder = request.getfixturevalue(kind)
    module = build_module(preset, folder)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    visual = build_tokenizer(preset, **BOUNDS)
    out = tmp_path / "out"
    export_module(module, visual, folder, out, dtype=torch.float32)
    theirs, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    processor = AutoProcessor.from_pretrained(out, use_fast=False)
    picture = tmp_path / "noise.png"
    Image.effect_noise((131, 94), 80).convert("RGB").save(picture)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    inputs = processor(text=[text], images=[Image.open(picture)], return_tensors="pt")
    asked = question("Where?", [picture])
    wanted = prompt_logits(loaded(module, visual, folder), asked)[None]
    with torch.no_grad():
        logits = theirs.eval()(**inputs).logits
    assert logits.shape == wanted.shape
    assert (logits - wanted).abs().max() < 1e-5
    assert wanted.std() > 0.5, "flat logits would prove nothing"


def test_pixel_bounds_travel_with_the_folder(tiny_model, build_module, tmp_path):
    out = tmp_path / "out"
    visual = build_tokenizer("pixel", **BOUNDS)
    dtype = torch.float32
    export_module(build_module("pixel"), visual, tiny_model, out, dtype=dtype)
    processor = AutoProcessor.from_pretrained(out, use_fast=False)
    bounds = processor.image_processor.min_pixels, processor.image_processor.max_pixels
    assert bounds == (BOUNDS["min_pixels"], BOUNDS["max_pixels"])
    with pytest.raises(ExportError, match="not an empty folder"):
        export_module(build_module("pixel"), visual, tiny_model, out, dtype=dtype)


def test_a_template_beside_the_tokenizer_is_found_by_the_processor(tiny_model, tmp_path):
    base, out = shutil.copytree(tiny_model, tmp_path / "base"), tmp_path / "out"
    (template,) = base.glob("chat_template.*")
    text = json.loads(template.read_text())["chat_template"]
    template.unlink()
    out.mkdir()
    copy_text_files(base, out)
    assert json.loads((out / "chat_template.json").read_text()) == {"chat_template": text}


def test_a_padded_vocabulary_is_cut(tiny_model, build_module, tmp_path):
    module = build_module("pixel")
    words = module.language_model.embedding.word_embeddings
    rows = words.weight.shape[0]
    words.weight = torch.nn.Parameter(torch.cat((words.weight, torch.ones(8, words.embedding_dim))))
    words.num_embeddings = rows + 8
    out = tmp_path / "out"
    visual = build_tokenizer("pixel", **BOUNDS)
    export_module(module, visual, tiny_model, out, dtype=torch.float32)
    found = weights(out)
    assert found["model.embed_tokens.weight"].shape[0] == rows
    assert torch.equal(found[PATCH_EMBED], weights(tiny_model)[PATCH_EMBED])


@pytest.fixture(params=["tiny_model", "tiny_model_25"])
def base(request) -> Path:
    """Of Qwen2-VL, and of Qwen2.5-VL, whose vision MLP is gated."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def adapted(base, build_module):
    """A module whose adapters do something."""
    from dct_vl.model.lora import apply_lora
    from dct_vl.model.parts import LoraConfig

    module = build_module("dct14", base)
    targets = ["linear_qkv", "linear_proj", "*.layers.*.linear_fc1", "*.layers.*.linear_fc2"]
    apply_lora(module, LoraConfig(target_modules=targets, rank=4, alpha=8), seed=1)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("linear_out.weight") or name.startswith("vision_projection"):
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return module


def test_adapters_are_merged_or_written_apart(adapted, base, tmp_path):
    """The base model, what was trained in full, and A times B give the merged model."""
    from dct_vl.export.adapter import export_adapter

    visual = build_tokenizer("dct14", **BOUNDS)
    apart = tmp_path / "apart"
    apart.mkdir()
    trained = frozenset({"front_end", "projector"})
    export_adapter(adapted, visual, base, apart, trained=trained, dtype=torch.float32)
    asked = question("Where is it?")
    before = prompt_logits(loaded(adapted, visual, base), asked)
    export_module(adapted, visual, base, tmp_path / "merged", dtype=torch.float32)
    after = prompt_logits(loaded(adapted, visual, base), asked)
    assert (before - after).abs().max() < 1e-5
    merged, start = weights(tmp_path / "merged"), weights(base)
    parts = {n.removeprefix("base_model.model."): t for n, t in weights(apart).items()}
    settings = json.loads((apart / "adapter_config.json").read_text())
    assert "model.layers.1.self_attn.k_proj" in settings["target_modules"]
    assert "visual.blocks.0.attn.qkv" in settings["target_modules"]
    for name in settings["target_modules"]:
        delta = parts.pop(f"{name}.lora_B.weight") @ parts.pop(f"{name}.lora_A.weight")
        start[f"{name}.weight"] += delta * settings["lora_alpha"] / settings["r"]
    assert {name.rpartition(".")[0] for name in parts} == set(settings["modules_to_save"])
    start.update(parts)
    assert start.keys() == merged.keys()
    for name, tensor in start.items():
        assert torch.allclose(tensor, merged[name], atol=1e-6), name
