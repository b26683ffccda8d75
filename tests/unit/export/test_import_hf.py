"""Folder → NeMo checkpoint → folder, bit by bit, and what is said about broken folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLForConditionalGeneration

from dct_vl.export.checkpoint import checkpoint_dtype, export_checkpoint
from dct_vl.export.import_hf import import_folder
from dct_vl.inference.loading import load_checkpoint


@pytest.fixture(scope="module")
def half(tiny_model, tmp_path_factory) -> Path:
    """The tiny model in bf16, untied, in several files."""
    folder = tmp_path_factory.mktemp("half")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    model = Qwen2VLForConditionalGeneration.from_pretrained(tiny_model, torch_dtype=torch.bfloat16)
    model.config.tie_word_embeddings = False
    head = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(7))
    model.lm_head.weight = torch.nn.Parameter(head.bfloat16())
    model.save_pretrained(folder, max_shard_size="100KB")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = folder.glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("kind", ["tiny_model", "half", "tiny_model_25"])
def test_there_and_back_is_the_identity(kind, request, tmp_path):
    """float32, tied, in one file; bf16, untied, in several; Qwen2.5-VL."""
    folder = request.getfixturevalue(kind)
    dtype = torch.bfloat16 if kind == "half" else torch.float32
    checkpoint = import_folder(folder, tmp_path / "imported")
    assert checkpoint_dtype(checkpoint) == dtype
    export_checkpoint(tmp_path / "imported", tmp_path / "exported")
    expected, found = weights(folder), weights(tmp_path / "exported")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype == dtype
        assert torch.equal(tensor, expected[name]), name
    for name in ("tokenizer.json", "chat_template.json", "generation_config.json"):
        assert (tmp_path / "exported" / name).read_bytes() == (folder / name).read_bytes()


def test_an_imported_checkpoint_is_a_models(tiny_model, build_module, tmp_path):
    import_folder(tiny_model, tmp_path / "imported", tokenizer="dct28_420")
    model = load_checkpoint(tmp_path / "imported")
    assert (model.step, model.visual.name, model.visual.max_pixels) == (0, "dct28_420", 12845056)
    expected = build_module("dct28_420").state_dict()
    found = model.module.state_dict()
    tensors = {name: t for name, t in expected.items() if isinstance(t, torch.Tensor)}
    assert len(tensors) > 40
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name


def test_pixel_bounds_of_later_releases_are_read(tiny_model, tmp_path):
    folder = tmp_path / "later"
    shutil.copytree(tiny_model, folder)
    settings = {"min_pixels": None, "size": {"shortest_edge": 6272, "longest_edge": 200704}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    import_folder(folder, tmp_path / "imported")
    visual = load_checkpoint(tmp_path / "imported").visual
    assert (visual.min_pixels, visual.max_pixels) == (6272, 200704)


def test_a_broken_folder_is_described(half, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(half, folder)
    first, second, third = sorted(folder.glob("*.safetensors"))[:3]
    with open(first, "r+b") as file:
        file.truncate(1000)
    second.unlink()
    kept = load_file(third)
    lost = sorted(kept)[0]
    del kept[lost]
    save_file(kept, third, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        import_folder(folder, tmp_path / "out")
    for part in (first.name, second.name, f"{third.name} lacks {lost}"):
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_tensors_without_a_place_are_listed(tiny_model, tmp_path):
    folder = tmp_path / "more"
    shutil.copytree(tiny_model, folder)
    found = load_file(folder / "model.safetensors")
    found["visual.blocks.0.mlp.gate_proj.weight"] = torch.zeros(2)
    found["model.layers.2.input_layernorm.weight"] = torch.zeros(64)
    found["lm_head.weight"] = found["model.embed_tokens.weight"] + 1
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="no place in the model for") as caught:
        import_folder(folder, tmp_path / "out")
    said = str(caught.value)
    assert "model.layers.2.input_layernorm.weight, visual.blocks.0.mlp.gate_proj.weight" in said
    assert "lm_head.weight differs" in said


def test_a_tied_matrix_may_be_there_twice(tiny_model, tmp_path):
    folder = tmp_path / "twice"
    shutil.copytree(tiny_model, folder)
    found = load_file(folder / "model.safetensors")
    found["lm_head.weight"] = found["model.embed_tokens.weight"].clone()
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    import_folder(folder, tmp_path / "imported")
    export_checkpoint(tmp_path / "imported", tmp_path / "exported")
    assert "lm_head.weight" not in weights(tmp_path / "exported")


def test_other_models_and_places_are_refused(tiny_model, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ValueError, match="not an empty folder"):
        import_folder(tiny_model, tmp_path / "taken")
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        import_folder(tmp_path, tmp_path / "out")


def test_a_folder_with_code_is_refused_before_anybody_is_asked_to_run_it(
    tiny_model, tmp_path, monkeypatch
):
    folder = tmp_path / "code"
    shutil.copytree(tiny_model, folder)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "strange", "auto_map": {"AutoConfig": "strange.Strange"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "strange.py").write_text("raise SystemExit('this ran')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match=r"config\.json describes 'strange'; expected 'qwen2_vl'"):
        import_folder(folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["weights/__0_0.distcp", "weights/.metadata"])
def test_a_damaged_checkpoint_is_named_with_the_others(tiny_model, tmp_path, name):
    checkpoint = import_folder(tiny_model, tmp_path / "run")
    earlier = checkpoint.with_name("step-00000005")
    shutil.copytree(checkpoint, earlier)
    damaged = checkpoint / name
    size = damaged.stat().st_size
    with open(damaged, "r+b") as file:
        file.truncate(40)
    said = f"step-00000000 is damaged: {name} has 40 bytes, {size} were written; .*step-00000005"
    for read in (load_checkpoint, lambda path: export_checkpoint(path, tmp_path / "out")):
        with pytest.raises(ValueError, match=said):
            read(checkpoint)
    assert load_checkpoint(tmp_path / "run").step == 0


def test_a_damaged_text_tokenizer_is_named(tiny_model, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    import_folder(base, tmp_path / "run")
    (base / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"tokenizer of .*base cannot be read .*fetch them again"):
        load_checkpoint(tmp_path / "run")


def test_an_exported_folder_says_what_it_is(tiny_model, tmp_path):
    import_folder(tiny_model, tmp_path / "imported", tokenizer="dct28_420")
    results = {"results": {"docs": {"anls,none": 0.75, "anls_stderr,none": 0.01, "alias": "docs"}}}
    (tmp_path / "imported" / "20260101_000000_results.json").write_text(json.dumps(results))
    exported = export_checkpoint(tmp_path / "imported", tmp_path / "exported")
    assert (exported.is_plain, exported.step, exported.dtype) == (False, 0, "float32")
    card = (tmp_path / "exported" / "README.md").read_text()
    head, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(head)["base_model"] == tiny_model.name
    assert "trust_remote_code=True" in body
    assert "| docs | anls | 0.75 |" in body
    assert "stderr" not in body
    assert "| pixels of an image | 3,136 to 12,845,056 |" in body
    assert "luma_keep: 28" in body
    assert str(tmp_path) not in card


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("model.safetensors.index.json", '{"weight_map": {"a"', "no index of weights"),
        ("model.safetensors.index.json", "{}", "no index of weights"),
        ("preprocessor_config.json", "{", "is no JSON"),
        ("preprocessor_config.json", "[]", "does not fit"),
        ("preprocessor_config.json", '{"size": 224}', "does not fit"),
        ("preprocessor_config.json", '{"min_pixels": "few"}', "does not fit"),
        ("preprocessor_config.json", '{"min_pixels": 9, "max_pixels": 8}', "says min_pixels=9"),
        ("config.json", '{"model_ty', "cannot be read"),
        ("config.json", "[]", "cannot be read"),
    ],
)
def test_a_damaged_json_is_named(tiny_model, tmp_path, name, text, says):
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_model, folder)
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} {says}|{name} is {says}"):
        import_folder(folder, tmp_path / "out")


def test_the_dtype_of_later_releases_is_kept(tiny_model, tmp_path):
    folder = tmp_path / "later"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    import_folder(folder, tmp_path / "imported")
    assert load_checkpoint(tmp_path / "imported").run.model.dtype == "bf16"
