"""Names, keys and values of presets: what is accepted and what the errors say."""

import pickle
import shutil

import pytest
import torch
from omegaconf import OmegaConf

from dct_tokenizer import (
    TokenizerConfigError,
    build_tokenizer,
    list_presets,
    preset_config,
    register_family,
    registry,
)
from dct_tokenizer.families.pixel import PixelTokenizer


@pytest.mark.parametrize("name", list_presets())
def test_every_preset_builds_is_named_like_its_file_and_comes_back_from_its_config(name):
    tokenizer = build_tokenizer(name)
    assert tokenizer.name == name
    assert build_tokenizer(tokenizer.config()) == tokenizer
    assert pickle.loads(pickle.dumps(tokenizer)) == tokenizer
    assert build_tokenizer(OmegaConf.create(preset_config(name))) == tokenizer


@pytest.mark.parametrize("name", list_presets())
def test_every_preset_spells_out_its_keys_so_that_hydra_can_override_them(name):
    """Hydra refuses to change a key that a file lacks."""
    tokenizer = build_tokenizer(name)
    implied = {"min_pixels", "max_pixels"}  # they belong to the data
    if tokenizer.family in ("pixel_downscale", "post_dct"):
        implied.add("cell")  # stock by definition
    assert preset_config(name).keys() == tokenizer.config().keys() - implied


@pytest.mark.parametrize("name", list_presets())
def test_all_of_a_front_end_moves_to_another_device(name):
    """A tensor that is no parameter and no buffer stays on the host: no CPU run would see it."""
    tokenizer = build_tokenizer(name)
    for module in filter(None, (tokenizer.front_end(8), tokenizer.post_merge())):
        module.to("meta")
        for part in module.modules():
            held = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
            plain = {k: v for k, v in vars(part).items() if isinstance(v, torch.Tensor)}
            assert not plain, f"{type(part).__name__} keeps {', '.join(plain)} as plain tensors"
            assert all(tensor.is_meta for tensor in held)


def test_overrides_win():
    tokenizer = build_tokenizer("dct28_420", whiten=False, max_pixels=43_904)
    assert (tokenizer.whiten, tokenizer.max_pixels) == (False, 43_904)
    assert preset_config("dct28_420")["name"] == "dct28_420"


def test_a_yaml_file_dropped_into_the_folder_is_a_preset(tmp_path, monkeypatch):
    for path in registry.PRESET_DIR.glob("*.yaml"):
        shutil.copy(path, tmp_path)
    text = "name: dct7\nfamily: block\ncell: 7\nluma_keep: 7\nchroma_keep: 3\n"
    (tmp_path / "dct7.yaml").write_text(text)
    monkeypatch.setattr(registry, "PRESET_DIR", tmp_path)
    assert "dct7" in list_presets()
    assert build_tokenizer("dct7").chroma_keep == 3


BLOCK = {"name": "x", "family": "block", "cell": 14, "luma_keep": 14, "chroma_keep": 14}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("dct28_402", ["'dct28_402'", "known: dct28_420"]),
        ({"family": "pixel"}, ["`name`"]),
        ({"name": "x"}, ["`family`"]),
        ({"name": "x", "family": "blok"}, ["'blok'", "known: block"]),
        ({**BLOCK, "luma_kep": 3}, ["'luma_kep'", "valid: luma_keep"]),
        ({"name": "x", "family": "block", "cell": 14}, ["luma_keep"]),
        ({**BLOCK, "cell": "14"}, ["cell='14'", "expected int"]),
        ({**BLOCK, "whiten": 1}, ["whiten=1", "expected bool"]),
        ({**BLOCK, "cell": True}, ["cell=True", "expected int"]),
        ({**BLOCK, "luma_keep": 15}, ["luma_keep=15", "1..14"]),
        ({**BLOCK, "temporal_keep": 3}, ["temporal_keep=3", "1..2"]),
        ({**BLOCK, "frames_per_cell": 3}, ["frames_per_cell=3", "multiple of 2"]),
        ({**BLOCK, "min_pixels": 10, "max_pixels": 9}, ["min_pixels=10", "max_pixels=9"]),
        ({"name": "x", "family": "pixel", "cell": 0}, ["cell=0"]),
        ({"name": "x", "family": "pixel_downscale", "cell": 28}, ["cell=28", "14"]),
        (
            {"name": "x", "family": "pixel_downscale", "same_tokens_as": "pixel_downscale"},
            ["such a control itself"],
        ),
        (
            {"name": "x", "family": "pixel_downscale", "same_tokens_as": "adaptive_rms4"},
            ["'adaptive_rms4'", "before decoding"],
        ),
        ({"name": "x", "family": "post_dct", "ratio": 1.5}, ["ratio=1.5"]),
        ({"name": "x", "family": "adaptive"}, ["budget=0.0", "exactly one"]),
        ({"name": "x", "family": "adaptive", "budget": 0.5, "threshold": 1.0}, ["exactly one"]),
        ({"name": "x", "family": "adaptive", "budget": 2}, ["budget=2", "0..1"]),
    ],
)
def test_what_is_wrong_is_named(config, words):
    with pytest.raises(TokenizerConfigError) as error:
        build_tokenizer(config)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_family_name_is_taken_once():
    registry.list_families()
    with pytest.raises(TokenizerConfigError, match="'pixel' is taken"):
        register_family("pixel")(PixelTokenizer)
