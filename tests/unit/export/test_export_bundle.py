"""Folders with their tokenizer's code, in a process that cannot import this project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trainers_side import loaded, prompt_logits, question, replies
from transformers import AutoImageProcessor

from data_prep.schema import Turn
from dct_tokenizer import build_tokenizer
from dct_vl.export.checkpoint import export_module

BOUNDS = {"min_pixels": 56 * 56, "max_pixels": 168 * 168}
PRESETS = ("dct28_420", "pixel_downscale", "post_dct", "adaptive", "pixel28", "dct14_t4")
#: (preset, fixture of the folder)
CASES = (
    *((preset, "tiny_model") for preset in PRESETS),
    ("dct28_420", "tiny_model_25"),
    ("adaptive", "tiny_model_25"),
    ("dct14_t4", "tiny_model_25"),
)

NEW_TOKENS = 8

#: answers every folder's questions and writes what it said; the project is out of reach
ASK = """
import json, sys
for name in ("dct_tokenizer", "data_prep", "dct_vl"):
    sys.modules[name] = None
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folders, pictures = json.loads(sys.argv[1]), [Image.open(p) for p in json.loads(sys.argv[2])]
said = {}
for folder in folders:
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, trust_remote_code=True, torch_dtype="auto", output_loading_info=True
    )
    assert not any(info.values()), (folder, info)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    processor.tokenizer.padding_side = "left"
    ask = lambda n, text: processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}] * n + [{"type": "text", "text": text}]}],
        add_generation_prompt=True,
    )
    texts = [ask(2, "Where is it?"), ask(0, "How many?"), ask(1, "What color is the shape?")]
    inputs = processor(text=texts, images=pictures, padding=True, return_tensors="pt")
    model.eval()
    settings = dict(max_new_tokens=int(sys.argv[4]), do_sample=False)
    tokens = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
    slow = model.generate(**inputs, **settings, use_cache=False)
    beams = model.generate(**inputs, **settings, num_beams=2)
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1].float()
    said[folder] = {
        "texts": [t.strip() for t in processor.batch_decode(tokens, skip_special_tokens=True)],
        "same_without_cache": slow[:, inputs["input_ids"].shape[1] :].tolist() == tokens.tolist(),
        "beams": list(beams.shape),
        "logits": logits.tolist(),
        "dtype": str(model.dtype),
    }
json.dump(said, open(sys.argv[3], "w"))
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    """Three pictures with detail, of odd sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    files = []
    for number, size in enumerate([(131, 94), (60, 150), (200, 180)]):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
        files.append(folder / f"{number}.png")
        coarse.resize(size, Image.Resampling.BICUBIC).save(files[-1])
    return files


@pytest.fixture(scope="module")
def exported(tiny_model, tiny_model_25, build_module, tmp_path_factory) -> dict[Any, Path]:
    """A folder a case, its weights moved away from their start; one more in bf16."""
    folder = tmp_path_factory.mktemp("exported")
    bases = {"tiny_model": tiny_model, "tiny_model_25": tiny_model_25}
    found: dict[Any, Path] = {}
    for preset, kind in CASES:
        module = moved(build_module(preset, bases[kind]))
        visual = build_tokenizer(preset, **BOUNDS)
        found[preset, kind] = folder / f"{preset}_{kind}"
        dtype = torch.float32
        export_module(module, visual, bases[kind], found[preset, kind], dtype=dtype)
        if (preset, kind) == CASES[0]:
            dtype = torch.bfloat16
            export_module(module, visual, tiny_model, folder / "half", dtype=dtype)
            found["half"] = folder / "half"
    return found


def moved(module):
    """The module away from its start, statistics of the whitening included."""
    generator = torch.Generator().manual_seed(1)
    front_end = module.vision_model.front_end
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        for name in ("mean", "std"):
            if hasattr(front_end, name):
                getattr(front_end, name).mul_(1.01)
    return module


@pytest.fixture(scope="module")
def said(exported, pictures, tmp_path_factory) -> dict[Any, dict]:
    """What the folders answer in another process."""
    folder = tmp_path_factory.mktemp("said")
    output = folder / "said.json"
    names = {str(path): case for case, path in exported.items()}
    arguments = [json.dumps(list(names)), json.dumps([str(p) for p in pictures]), str(output)]
    arguments.append(str(NEW_TOKENS))
    done = subprocess.run(
        [sys.executable, "-c", ASK, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return {names[path]: value for path, value in json.loads(output.read_text()).items()}


@pytest.mark.parametrize(("preset", "kind"), CASES)
def test_the_same_answers_as_the_trainers_own(preset, kind, said, pictures, build_module, request):
    folder = request.getfixturevalue(kind)
    visual = build_tokenizer(preset, **BOUNDS)
    model = loaded(moved(build_module(preset, folder)), visual, folder)
    questions = [
        question("Where is it?", pictures[:2]),
        question("How many?"),
        question("What color is the shape?", pictures[2:]),
    ]
    logits = torch.stack([prompt_logits(model, asked)[-1] for asked in questions])
    found = said[preset, kind]
    assert (torch.tensor(found["logits"]) - logits).abs().max() < 1e-4
    assert logits.std() > 0.5
    asked = [replace(one, max_new_tokens=NEW_TOKENS) for one in questions]
    wanted = [reply.text for reply in replies(model, asked)]
    assert found["texts"] == wanted
    assert len(set(wanted)) > 1, "equal answers prove little"
    assert found["same_without_cache"]
    assert found["beams"][0] == 3


def test_half_precision_keeps_the_statistics(said):
    assert said["half"]["dtype"] == "torch.bfloat16"
    full, half = (torch.tensor(said[name]["logits"]) for name in (CASES[0], "half"))
    assert (full - half).abs().max() < 0.15 * full.std()


def test_pixel_bounds_are_there_for_every_release(tiny_model, build_module, tmp_path):
    out = tmp_path / "dct28_420_bounds"
    visual = build_tokenizer("dct28_420", **BOUNDS)
    dtype = torch.float32
    export_module(build_module("dct28_420"), visual, tiny_model, out, dtype=dtype)
    low, high = BOUNDS["min_pixels"], BOUNDS["max_pixels"]
    path = out / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    assert settings["size"] == {"shortest_edge": low, "longest_edge": high}

    def bounds(**changed):
        load = AutoImageProcessor.from_pretrained
        processor = load(out, trust_remote_code=True, use_fast=False, **changed)
        tokenizer = processor.tokenizer_with()
        return tokenizer.min_pixels, tokenizer.max_pixels

    assert bounds() == (low, high)
    assert bounds(min_pixels=2 * low) == (2 * low, high)
    # as a later release would write it
    del settings["min_pixels"], settings["max_pixels"]
    settings["size"] = {"shortest_edge": low, "longest_edge": high // 2}
    path.write_text(json.dumps(settings))
    assert bounds() == (low, high // 2)


def test_a_folder_with_code_is_not_taken_for_a_stock_model(exported):
    from transformers import AutoConfig

    for kind, name in (("tiny_model", "qwen2_vl_dct"), ("tiny_model_25", "qwen2_5_vl_dct")):
        folder = exported["dct28_420", kind]
        assert json.loads((folder / "config.json").read_text())["model_type"] == name
        with pytest.raises(ValueError, match="trust_remote_code"):
            AutoConfig.from_pretrained(folder, trust_remote_code=False)


@pytest.mark.parametrize("kind", ["tiny_model", "tiny_model_25"])
def test_a_clip_is_placed_as_the_trainer_places_it(kind, exported, build_module, request):
    """In this process, where both sides can be called: pictures and clips in one text."""
    from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    from dct_vl.inputs.batch import pad_batch
    from dct_vl.inputs.cells import encode_visual
    from dct_vl.inputs.chat import ChatTokenizer, place_media
    from dct_vl.inputs.samples import EncodedChat

    rng = np.random.default_rng(3)
    still = rng.integers(0, 256, (1, 90, 120, 3), dtype=np.uint8)
    clip = rng.integers(0, 256, (6, 60, 80, 3), dtype=np.uint8)
    turns = (Turn(role="user", text="<video>Before or after?<image>"),)
    base = request.getfixturevalue(kind)
    chat = ChatTokenizer(AutoTokenizer.from_pretrained(base))
    visual = build_tokenizer("dct14_t4", **BOUNDS)
    time_scale = (2 / 1.5, 2.0) if kind == "tiny_model_25" else None
    plans = [replace(visual.plan(60, 80, 6), time_scale=time_scale), visual.plan(90, 120)]
    pictures = encode_visual(visual, [clip, still], plans)
    prompt = chat.prompt(turns, 1, 1)
    ids, is_answer, positions = place_media(prompt, chat.pad_ids, pictures.plans)
    sample = EncodedChat(
        __key__="",
        __restore_key__=(),
        input_ids=ids,
        is_answer=is_answer,
        position_ids=positions,
        visual=pictures,
    )
    batch = pad_batch([sample], visual=visual, pad_to=None, pad_multiple=1)
    folder = exported["dct14_t4", kind]
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    text = processor.apply_chat_template(chat.messages(turns, 1, 1), add_generation_prompt=True)
    inputs = processor(
        text=text, images=still[0], videos=[list(clip)], fps=[1.5], return_tensors="pt"
    )
    times = inputs["token_positions"][: plans[0].num_llm_tokens, 0]
    assert set(times.tolist()) == ({0, 5} if kind == "tiny_model_25" else {0, 2})
    with torch.no_grad():
        wanted = moved(build_module("dct14_t4", base))(replace(batch, labels=None))
        found = model.eval()(**inputs).logits
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1e-4
