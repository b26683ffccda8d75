"""Which layouts are compared, and what passes."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

import dct_vl.verbs.layout_check
from dct_vl.errors import ConfigError
from dct_vl.runs.config.compose import compose_config
from dct_vl.training.layout_check.layouts import (
    LAYOUTS,
    REFERENCE,
    Inputs,
    ParallelLayout,
    choose_layouts,
    make_inputs,
)
from dct_vl.training.layout_check.runs import (
    FP32,
    Case,
    CaseOutcome,
    CheckSettings,
    judge,
    overrides_of,
    run_cases,
)
from dct_vl.verbs.layout_check import layout_check, line

TP2 = LAYOUTS[0]


@pytest.mark.parametrize(
    ("ranks", "names"),
    [
        (2, ["tp2", "tp2_sp", "pp2", "dp2", "cp2"]),
        (3, ["tp2", "tp2_sp", "pp2", "dp2", "cp2"]),
        (4, [layout.name for layout in LAYOUTS]),
    ],
)
def test_layouts_that_fit(ranks, names):
    assert [layout.name for layout in choose_layouts(ranks)] == names


def test_named_layouts():
    assert [layout.name for layout in choose_layouts(8, ["dp4", "tp2"])] == ["dp4", "tp2"]
    with pytest.raises(ConfigError, match="layout tp4 takes 4 ranks and there are 2"):
        choose_layouts(2, ["tp4"])
    with pytest.raises(ConfigError, match="unknown layout 'tp3'; known: tp2"):
        choose_layouts(2, ["tp3"])
    with pytest.raises(ConfigError, match="nothing to compare"):
        choose_layouts(1)


@pytest.fixture
def settings(shards, tiny_model, tmp_path):
    return CheckSettings(
        inputs=Inputs(shards=shards, model=tiny_model),
        work_dir=tmp_path,
        on_cpu=True,
        num_ranks=4,
        tokenizer="pixel",
        layer_spec="local",
        steps=3,
    )


@pytest.mark.parametrize("layout", [REFERENCE, *LAYOUTS], ids=lambda layout: layout.name)
@pytest.mark.parametrize("variant", ["padded", "packed"])
def test_every_run_reads_the_same_streams(settings, layout, variant):
    run = compose_config(overrides_of(Case(variant=variant, layout=layout), settings))
    assert run.data.num_workers * layout.dp == 4
    assert run.trainer.global_batch_size % (run.trainer.micro_batch_size * 4) == 0
    assert run.data.packing == (variant == "packed")


def test_what_cannot_work_is_refused_without_a_start(settings):
    """Heads that do not divide, and four pipeline stages of a model of two layers."""
    cp3 = ParallelLayout(name="cp3", cp=3)
    pp4 = next(layout for layout in LAYOUTS if layout.name == "pp4")
    seen: list[CaseOutcome] = []
    cases = [Case(variant="padded", layout=layout) for layout in (cp3, pp4)]
    assert run_cases(cases, settings, seen.append) == seen
    assert "CP_SIZE=3 does not divide" in seen[0].refusal
    assert "PP_SIZE=4 does not divide the model's 2 layers" in seen[1].refusal
    assert not list(settings.work_dir.iterdir())


@pytest.mark.slow
def test_a_run_that_breaks_says_why(settings, tmp_path):
    """Not torchrun's last lines: weights that are cut short."""
    model = shutil.copytree(settings.inputs.model, tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"cut short")
    settings = replace(settings, inputs=replace(settings.inputs, model=model))
    (broken,) = run_cases([Case(variant="padded", layout=TP2)], settings, lambda outcome: None)
    head, why = broken.failure.splitlines()[:2]
    assert head == f"exit status 1, {tmp_path / 'padded-tp2.log'}:"
    assert why.startswith("error on rank")
    assert "model.safetensors cannot be read" in broken.failure


def outcome(layout=TP2, **given) -> CaseOutcome:
    figures = {"losses": (6.0, 5.0, 4.0), "norms": (2.0, 2.0, 2.0)}
    return CaseOutcome(case=Case(variant="padded", layout=layout), **{**figures, **given})


@pytest.mark.parametrize(
    ("given", "status", "reason"),
    [
        ({"losses": (6.0, 5.0, 4.0003)}, "PASS", ""),
        ({"losses": (6.0, 5.0, 4.001)}, "FAIL", "more than 0.0001"),
        ({"norms": (2.0, 2.01, 2.0)}, "FAIL", "0.001 (norm)"),
        ({"losses": (6.0, math.nan, 4.0)}, "FAIL", "more than"),
        ({"losses": (6.0, 5.0)}, "FAIL", "2 steps, the reference 3; expected 3"),
        ({"failure": "exit status 1"}, "FAIL", "exit status 1"),
        ({"refusal": "CP_SIZE=2: no"}, "REFUSED", "CP_SIZE=2: no"),
    ],
)
def test_verdicts(given, status, reason):
    verdict = judge(outcome(**given), outcome(REFERENCE), FP32, steps=3)
    assert verdict.status == status
    assert reason in verdict.reason
    assert line(verdict).startswith(status)


def test_without_a_reference_nothing_passes():
    broken = outcome(REFERENCE, failure="exit status 1")
    assert judge(outcome(), broken, FP32, steps=3).status == "FAIL"


def test_a_reference_that_is_refused_fails():
    """A misspelt tokenizer, say: nothing was compared."""
    refused = outcome(REFERENCE, refusal="unknown tokenizer 'dtc14'")
    assert judge(refused, refused, FP32, steps=3).status == "FAIL"


def test_runs_of_one_name_run_once_and_the_table_has_somewhere_to_go(tmp_path, monkeypatch):
    seen = []

    def run_cases(cases, *_):
        seen.extend(case.name for case in cases)
        raise typer.Exit

    monkeypatch.setattr(dct_vl.verbs.layout_check, "run_cases", run_cases)
    monkeypatch.setattr(dct_vl.verbs.layout_check, "make_inputs", lambda *_: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    app = typer.Typer()
    app.command()(layout_check)
    twice = ["--ranks", "2", "--only", "tp2,tp2", "--variants", "packed,packed"]
    CliRunner().invoke(app, twice, catch_exceptions=False)
    assert seen == ["packed-single", "packed-tp2"]
    with pytest.raises(ConfigError, match="its folder does not exist"):
        CliRunner().invoke(
            app, [*twice, "--json", str(tmp_path / "no" / "t.json")], catch_exceptions=False
        )


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(ConfigError, match="holds something else"):
        make_inputs(tmp_path)
    with pytest.raises(
        ConfigError, match="--model-type 'llama'; expected one of qwen2_vl, qwen2_5"
    ):
        make_inputs(tmp_path / "other", "llama")
    with pytest.raises(ConfigError, match="holds something else"):
        make_inputs(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").exists()
