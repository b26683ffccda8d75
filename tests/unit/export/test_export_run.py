"""What an export of a run leaves behind where something is wrong with the run or the place."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

from dct_tokenizer.decode import decode_rgb
from dct_vl.export import check as outside
from dct_vl.export.check import can_be_asked, max_abs_logit_diff
from dct_vl.export.checkpoint import export_adapters, export_checkpoint
from dct_vl.export.import_hf import import_folder
from dct_vl.export.tensors import ExportError
from dct_vl.inference.generate.answers import questions_of
from dct_vl.inference.loading import load_checkpoint
from dct_vl.inputs.shard_reader import read_split


def a_run(model: Path, folder: Path, data: Path | str) -> Path:
    """A run with one checkpoint, as if it had been trained on `data`."""
    import_folder(model, folder, tokenizer="dct28_420")
    config = OmegaConf.load(folder / "config.yaml")
    config.data.path = str(data)
    config.data.max_pixels = 168 * 168
    OmegaConf.save(config, folder / "config.yaml")
    return folder


@pytest.fixture(scope="module")
def made(tiny_model, shards, tmp_path_factory) -> Path:
    return a_run(tiny_model, tmp_path_factory.mktemp("runs") / "run", shards)


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(made, tmp_path / "run")


def test_a_damaged_file_of_scores_is_named_and_nothing_is_left(run, tmp_path):
    (run / "2026_results.json").write_text("{")
    with pytest.raises(ExportError, match=r"2026_results\.json cannot be read.*or remove the file"):
        export_checkpoint(run, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_losses_that_json_cannot_hold_are_said(run, tmp_path):
    (run / "steps.jsonl").write_text('{"step": 0, "loss": null}\n')
    (run / "validation.jsonl").write_text('{"step": 0, "loss": null}\n')
    export_checkpoint(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| training loss | not finite at step 0 |" in card
    assert "| validation loss | not finite at step 0 |" in card


@pytest.mark.parametrize("asked", ["check", "outside"])
@pytest.mark.parametrize(
    ("data", "says"), [("", "has no data, as after an import"), ("/nowhere", "/nowhere cannot be")]
)
def test_samples_are_looked_for_before_anything_is_written(tiny_model, tmp_path, asked, data, says):
    run = a_run(tiny_model, tmp_path / "run", data)
    with pytest.raises(ExportError, match=f"{says}.*leave them out"):
        export_checkpoint(run, tmp_path / "out", **{asked: 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_adapters_are_written_whole_or_not_at_all(run, tmp_path):
    with pytest.raises(ExportError, match="needs a stock base model"):
        export_adapters(run, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_place_below_a_file_is_named(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"file/out cannot be made .*name another folder"):
        export_checkpoint(run, tmp_path / "file" / "out")


@pytest.mark.parametrize("asked", ["check", "outside"])
def test_logits_that_are_no_numbers_are_not_taken_for_equal(tiny_model, shards, tmp_path, asked):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    run = a_run(model, tmp_path / "run", shards)
    with pytest.raises(ExportError, match="logits are not finite"):
        export_checkpoint(run, tmp_path / "out", **{asked: 1})
    assert json.loads((tmp_path / "out" / "config.json").read_text())


def transparent(image: bytes) -> bytes:
    """The same size, with nothing opaque in it."""
    clear = Image.fromarray(decode_rgb(image)[0]).convert("RGBA")
    clear.putalpha(60)
    buffer = io.BytesIO()
    clear.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_damaged_picture_of_the_split_is_passed_over(made, shards, tmp_path):
    model = load_checkpoint(made)
    good = next(sample for sample in read_split(str(shards), "val") if sample.images)
    bad = replace(good, images=(b"junk", *good.images[1:]))
    film = replace(good, videos=(b"film",))
    clear = replace(good, images=tuple(transparent(image) for image in good.images))
    assert [can_be_asked(model, one) for one in (good, bad, film)] == [True, False, False]
    out = tmp_path / "out"
    export_checkpoint(made, out)
    assert max_abs_logit_diff(model, out, [bad, good]) < 1e-4
    assert max_abs_logit_diff(model, out, [clear]) < 1e-4
    request = questions_of(clear, 1)[-1].request
    (first, *_) = outside._request(model, request, tmp_path, 0)["images"]
    with Image.open(first) as written:
        assert np.array_equal(np.asarray(written), decode_rgb(clear.images[0])[0])
    with pytest.raises(ExportError, match="nothing was compared"):
        max_abs_logit_diff(model, out, [bad, film])


ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("package", ["dct_tokenizer", "data_prep", "dct_vl"])
def test_the_project_cannot_be_imported_even_where_it_lies(package):
    """Started in the project's folder, where its packages are otherwise found."""
    reader = outside._READER
    script = f"import runpy; runpy.run_path({str(reader)!r})['block_project'](); import {package}"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode
    assert f"ModuleNotFoundError: import of {package} halted" in done.stderr


def test_what_went_wrong_there_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"hf does not answer in plain transformers: (.|\n)*npz"):
        outside._start(tmp_path / "hf", tmp_path, "float32")
