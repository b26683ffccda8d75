"""Answers are kept under the weights that gave them, not under a name."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dct_vl.export.import_hf import import_folder
from dct_vl.inference.generate.engine import AnswerSettings
from dct_vl.inference.generate.fingerprint import checkpoint_fingerprint, files_fingerprint
from dct_vl.inference.generate.open_engine import open_engine
from dct_vl.inference.generate.teams import Layout


def test_a_copy_is_the_same_and_a_changed_tensor_is_not(tmp_path):
    ours = tmp_path / "ours"
    ours.mkdir()
    tensors = {f"layer{n}": torch.full((64, 64), float(n)) for n in range(200)}
    save_file(tensors, ours / "model.safetensors")
    copy = shutil.copytree(ours, tmp_path / "copy")
    assert files_fingerprint(copy, ("*.safetensors",)) == files_fingerprint(
        ours, ("*.safetensors",)
    )
    save_file({**tensors, "layer117": tensors["layer117"] + 1}, copy / "model.safetensors")
    assert files_fingerprint(copy, ("*.safetensors",)) != files_fingerprint(
        ours, ("*.safetensors",)
    )


def test_training_names_a_checkpoint_by_its_own_id(tmp_path):
    for name, meta in (("a", {"step": 2, "id": "x"}), ("b", {"step": 2, "id": "y"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dct_vl.json").write_text(json.dumps(meta))
    assert checkpoint_fingerprint(tmp_path / "a") == "x"
    assert checkpoint_fingerprint(tmp_path / "b") == "y"


@pytest.mark.parametrize("is_imported", [True, False])
def test_other_weights_under_the_same_name_are_another_engine(is_imported, tiny_model, tmp_path):
    folder, run = tmp_path / "folder", tmp_path / "run"
    shutil.copytree(tiny_model, folder)
    seen = []
    for _ in range(2):
        if is_imported:
            shutil.rmtree(run, ignore_errors=True)
            import_folder(folder, run)
        engine = open_engine(run if is_imported else folder, AnswerSettings(), Layout())
        seen.append(engine.identity())
        weights = {k: v + 0.01 for k, v in load_file(folder / "model.safetensors").items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    before, after = seen
    assert before.pop("weights") != after.pop("weights")
    assert before == after
