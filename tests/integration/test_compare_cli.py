"""Two real runs by the command line: answered, compared, exported, asked without the project."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from command_line import invoke as run_verb
from safetensors.torch import load_file, save_file

from dct_vl.inputs.shard_reader import read_split
from dct_vl.runs.result_files import outside_answers
from dct_vl.runs.run_files import read_steps

pytestmark = pytest.mark.slow


def invoke(*command: object) -> tuple[int, str]:
    done = run_verb(*command)
    return done.exit_code, done.output


@pytest.fixture(scope="module")
def control(train):
    """The same samples with another tokenizer."""
    return train("control", "tokenizer=pixel_downscale", "trainer.val_every=0")


@pytest.fixture(scope="module")
def compared(reference, control, tmp_path_factory) -> tuple[Path, str]:
    """(output folder, what was said) of both runs, which answer four samples on the way."""
    output = tmp_path_factory.mktemp("compared")
    runs = (reference.folder, control.folder)
    code, said = invoke("compare", *runs, "--ask", "--limit", 4, "--output", output)
    assert code == 0, said
    return output, said


def test_runs_without_answers_are_asked_and_compared(compared, reference, control, shards):
    output, said = compared
    found = json.loads((output / "compare.json").read_text())
    asked = list(read_split(str(shards), "val", 4))
    lines = {
        run: [json.loads(line) for line in (run.folder / "answers.jsonl").read_text().splitlines()]
        for run in (reference, control)
    }
    (only,) = found["sets"]
    pictured = {sample.key for sample in asked if sample.images}
    for run in (reference, control):
        counted = [line for line in lines[run] if line["key"] in pictured]
        assert only["num_questions"] == len(counted)
        score = only["scores"][run.folder.name]["score"]
        assert score == sum(line["correct"] for line in counted) / len(counted)
    assert [run["tokenizer"] for run in found["runs"]] == ["dct28_420", "pixel_downscale"]
    for run, facts in zip((reference, control), found["runs"], strict=True):
        steps = read_steps(run.folder)
        # forward and backward, as the trainer counts them: three times the forward pass, but for
        # the front end, which has no gradient of its inputs
        done = sum(1e12 * step["tflops"] * step["seconds"] for step in steps)
        assert 1 < done / sum(s["num_samples"] for s in steps) / facts["flops_per_sample"] < 3
    assert found["warnings"] == []
    assert "warning" not in said
    page = (output / "compare.html").read_text()
    assert "consumed the same samples in every step" in page
    assert "of the split val" in page


def test_without_answers_the_next_step_is_named(control, reference, tmp_path):
    bare = shutil.copytree(control.folder, tmp_path / "bare", ignore=lambda *_: {"answers.jsonl"})
    code, output = invoke("compare", reference.folder, bare, "--output", tmp_path)
    assert code == 2
    assert re.search(r"bare has no scores .*add --ask", " ".join(output.split()))
    assert not list(tmp_path.glob("compare.*"))


@pytest.fixture(scope="module")
def exported(reference, tmp_path_factory) -> tuple[Path, str]:
    """(folder, what was said) of the run in transformers, asked about three samples."""
    out = tmp_path_factory.mktemp("exported") / "hf"
    code, output = invoke("export", reference.folder, out, "--outside", 3)
    assert code == 0, output
    return out, output


def test_an_exported_folder_answers_without_the_project(exported, reference, shards, tmp_path):
    out, output = exported
    asked = json.loads((out / "dct_vl_export.json").read_text())["outside"]
    assert 0 < asked["max_abs_logit_diff"] < 1e-4
    said = [json.loads(line) for line in outside_answers(out).read_text().splitlines()]
    assert asked["num_questions"] == len(said) >= 3
    assert asked["exact_match"] == sum(line["answer"] == line["truth"] for line in said) / len(said)
    assert f"{len(said)} answers" in output
    code, _ = invoke("answers", reference.folder, "--output", tmp_path / "own.jsonl", "--limit", 3)
    assert code == 0
    assert said == [json.loads(line) for line in (tmp_path / "own.jsonl").read_text().splitlines()]


def test_a_tampered_folder_is_found_out(exported, reference, tmp_path):
    from dct_vl.export.check import ask_outside
    from dct_vl.inference.loading import load_checkpoint

    tampered = shutil.copytree(exported[0], tmp_path / "hf")
    file = tampered / "model.safetensors"
    weights = load_file(file)
    name = next(n for n in sorted(weights) if n.endswith("mlp.down_proj.weight"))
    weights[name] *= 1.5
    save_file(weights, file, metadata={"format": "pt"})
    answers = tmp_path / "said.jsonl"
    model = load_checkpoint(reference.folder)
    found = ask_outside(model, tampered, answers, num_samples=1, num_compared=1)
    assert found.max_abs_logit_diff > 1e-3


def test_the_quickstart_is_gathered_from_what_it_left(
    compared, exported, reference, control, shards, tmp_path
):
    """The folders of launch/quickstart.sh, made of these runs."""
    (tmp_path / "answers").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "wds").symlink_to(shards)
    for name, run in (("main", reference), ("control", control), ("resumed", reference)):
        (tmp_path / "runs" / name).symlink_to(run.folder)
    for name, run in (("main", reference), ("control", control), ("blank", reference)):
        shutil.copy(run.folder / "answers.jsonl", tmp_path / "answers" / f"{name}.jsonl")
    command = ("quickstart", tmp_path, "--resumed-from", 3)
    code, said = invoke(*command)
    assert code == 2
    assert re.search(r"does not say how the folder answered .*--outside 40", " ".join(said.split()))
    (tmp_path / "hf").symlink_to(exported[0])
    shutil.copy(outside_answers(exported[0]), outside_answers(tmp_path / "hf"))
    code, said = invoke(*command)
    assert code == 0, said
    summary = json.loads((tmp_path / "summary.json").read_text())
    recorded = json.loads((exported[0] / "dct_vl_export.json").read_text())["outside"]
    assert summary["export_max_abs_logit_diff"] == recorded["max_abs_logit_diff"]
    assert summary["num_exported_answers_differing"] == 0
    assert 0 <= summary["eval_exact_match"] <= 1
    page = (tmp_path / "report.html").read_text()
    assert "word for word" in page
    assert "were trained on them for 6 steps" in " ".join(page.split())
    assert "consumed the same samples in every step" in page
    assert "of the split val" in page
    assert page.count("<img") > 3
    assert not (tmp_path / "compare").exists()
