"""Reading Hugging Face folders: every tensor where NeMo's importer puts it, every fault named."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Qwen2VLForConditionalGeneration,
)

from dct_vl.inputs.batch import Batch
from dct_vl.inputs.chat import VISUAL_TOKEN_INDEX

#: the importer's names for Transformer Engine's layers → the same parameters of the local spec
LOCAL_NAMES = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
    "vision_model.conv1.": "vision_model.front_end.",
}


@pytest.fixture(scope="module")
def importer(build_module) -> Any:
    """NeMo's importer, with the names of `nemo.collections.llm` that narrow imports leave out."""
    collection = importlib.import_module("nemo.collections.llm")

    def hidden(name: str) -> Any:
        for module in ("qwen2", "llama"):
            found = importlib.import_module(f"nemo.collections.llm.gpt.model.{module}")
            if hasattr(found, name):
                return getattr(found, name)
        raise AttributeError(name)

    with pytest.MonkeyPatch.context() as patch:
        if "__getattr__" not in vars(collection) and not hasattr(collection, "Qwen2Config"):
            patch.setattr(collection, "__getattr__", hidden, raising=False)
        stock = importlib.import_module("nemo.collections.vlm.qwen2vl.model.qwen2vl")
        apply = stock.io.apply_transforms

        def with_local_names(*args: Any, mapping: dict[str, str], **kwargs: Any) -> Any:
            for theirs, ours in LOCAL_NAMES.items():
                mapping = {key: value.replace(theirs, ours) for key, value in mapping.items()}
            return apply(*args, mapping=mapping, **kwargs)

        patch.setattr(stock.io, "apply_transforms", with_local_names)
        yield stock.HFQwen2VLImporter("unused")


class Holder(torch.nn.Module):
    """What the importer takes for a Lightning module."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        self.config = module.config


@pytest.fixture(scope="module")
def untied(tiny_model, tmp_path_factory) -> Path:
    """The tiny model with an output matrix of its own, in several safetensors files."""
    folder = tmp_path_factory.mktemp("untied")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    config = AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=False)
    torch.manual_seed(7)
    model = Qwen2VLForConditionalGeneration.from_pretrained(tiny_model, config=config)
    torch.nn.init.normal_(model.lm_head.weight)
    model.save_pretrained(folder, max_shard_size="150KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.mark.parametrize("kind", ["tiny_model", "untied", "tiny_model_25"])
def test_every_tensor_is_where_nemos_importer_puts_it(kind, request, build_module, importer):
    folder = request.getfixturevalue(kind)
    importer.is_v2_5 = kind == "tiny_model_25"
    ours = build_module("pixel", folder)
    theirs = build_module("pixel", folder)
    for parameter in theirs.parameters():
        parameter.data.fill_(torch.nan)
    source = AutoModelForImageTextToText.from_pretrained(folder)
    importer.convert_state(source, Holder(theirs))
    expected = dict(theirs.named_parameters())
    found = dict(ours.named_parameters())
    assert found.keys() == expected.keys()
    assert ("language_model.output_layer.weight" in found) == (kind == "untied")
    for name, parameter in found.items():
        assert torch.equal(parameter, expected[name]), name


def test_untied_output_gives_transformers_logits(untied, build_module):
    module = build_module("pixel", untied)
    reference = Qwen2VLForConditionalGeneration.from_pretrained(untied).eval()
    ids = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(9).expand(3, 2, 9)
    with torch.no_grad():
        ours = module(Batch(input_ids=ids, position_ids=positions))
        theirs = reference(input_ids=ids).logits
    assert (ids != VISUAL_TOKEN_INDEX).all()
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["tiny_model", "tiny_model_25"])
def test_all_tensors_of_a_folder_are_used(kind, request, build_module):
    from dct_vl.model.families.qwen_vl.weights import load_hf_weights
    from dct_vl.model.weights import HFFolder

    folder = request.getfixturevalue(kind)
    with HFFolder(folder) as source:
        names = source.names()
    assert load_hf_weights(build_module("dct28_420", folder), folder) == names


def test_the_two_models_have_no_place_for_each_others_tensors(
    tiny_model, tiny_model_25, build_module, tmp_path
):
    foreign = tmp_path / "foreign"
    shutil.copytree(tiny_model_25, foreign)
    shutil.copy(tiny_model / "model.safetensors", foreign)
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        build_module("pixel", foreign)
    for part in ("norm1.bias", "mlp.fc1.weight", "mlp.gate_proj.bias"):
        assert part in str(caught.value)


def spoilt(folder: Path, target: Path, change: Any) -> Path:
    """A copy of a folder with its dict of weights changed in place by `change`."""
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_all_misfits_are_listed_at_once(tiny_model, build_module, tmp_path):
    def change(weights: dict[str, torch.Tensor]) -> None:
        del weights["model.norm.weight"]
        del weights["model.layers.1.self_attn.k_proj.bias"]
        del weights["visual.patch_embed.proj.weight"]
        weights["visual.merger.mlp.2.bias"] = torch.zeros(63)
        weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(95, 64)
        weights["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(64, 63)
        weights["visual.blocks.0.attn.qkv.bias"] = torch.zeros(2)

    folder = spoilt(tiny_model, tmp_path / "spoilt", change)
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        build_module("pixel", folder)
    lines = str(caught.value).splitlines()
    assert str(folder) in lines[0]
    for part in (
        "model.norm.weight is missing",
        "model.layers.1.self_attn.k_proj.bias is missing",
        "visual.patch_embed.proj.weight is missing",
        "visual.merger.mlp.2.bias gives (63,)",
        "expected (64,)",
        "model.layers.0.mlp.up_proj.weight gives (191, 64)",
        "expected (192, 64)",
        "model.layers.0.self_attn.q_proj.weight (64, 63), model.layers.0.self_attn.k_proj.weight (",
        "visual.blocks.0.attn.qkv.bias (2,) do not make up vision_model.decoder.layers.0.",
    ):
        assert any(part in line for line in lines[1:]), part


def test_a_patch_embedding_of_another_width_is_named(tiny_model, build_module, tmp_path):
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["visual.patch_embed.proj.weight"] = torch.zeros(31, 3, 2, 14, 14)

    folder = spoilt(tiny_model, tmp_path / "spoilt", change)
    with pytest.raises(ValueError, match=r"visual\.patch_embed\.proj\.weight: .*31"):
        build_module("dct14", folder)


def test_a_file_that_is_cut_short_is_named(tiny_model, build_module, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(tiny_model, folder)
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(100_000)
    with pytest.raises(ValueError, match=r"cut/model\.safetensors cannot be read .*git lfs pull"):
        build_module("pixel", folder)


def test_a_shard_that_is_not_there_is_named(untied, build_module, tmp_path):
    folder = tmp_path / "gap"
    shutil.copytree(untied, folder)
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ValueError, match=gone.name):
        build_module("pixel", folder)


def test_a_folder_without_weights_is_named(tiny_model, build_module, tmp_path):
    folder = tmp_path / "empty"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ValueError, match="empty holds neither"):
        build_module("pixel", folder)


def test_another_kind_of_model_is_refused(tiny_model, build_module, tmp_path):
    folder = tmp_path / "foreign"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "qwen2"}))
    with pytest.raises(ValueError, match=r"config\.json describes 'qwen2'; expected 'qwen2_vl'"):
        build_module("pixel", folder)
    with pytest.raises(ValueError, match=r"nowhere/config\.json is missing"):
        build_module("pixel", tmp_path / "nowhere")
