"""The estimator against published sizes, measured peaks, and laws that memory follows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner

from dct_vl.errors import ConfigError
from dct_vl.runs.checks import check_layout
from dct_vl.runs.derived import RunSettings
from dct_vl.runs.model_sizes import model_sizes
from dct_vl.training.estimate import Estimate, Workload, estimate
from dct_vl.training.estimate.estimate import make_placement
from dct_vl.training.estimate.memory import (
    GIB,
    BatchShape,
    Placement,
    stage_memory,
    stage_parameters,
)
from dct_vl.verbs.estimate import compose_estimated, estimate_command

POINTS = json.loads((Path(__file__).parent / "measured_peaks.json").read_text())
PLACEMENT = Placement(sizes=model_sizes("2b"), front_end_parameters=1280 * 1176)
BATCH = BatchShape(rows=4, row_tokens=512, num_cells=4096, num_answers=512)
WORK = Workload(
    num_gpus=1,
    picture=(448, 448),
    pictures_per_sample=1,
    text_tokens=128,
    answer_tokens=64,
    peak_flops=989e12,
    mfu=0.4,
)


def peak(placement: Placement, batch: BatchShape = BATCH) -> float:
    return max(stage_memory(placement, batch, stage).peak for stage in range(placement.pp))


def estimated(*overrides: str, **work: Any) -> Estimate:
    run = compose_estimated(["model=qwen2vl_2b", "data.max_pixels=200704", *overrides])
    return estimate(run, model_sizes("2b"), replace(WORK, **work))


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point["what"])
def test_measured_peaks(point):
    shared = "trainer.micro_batch_size=4 trainer.global_batch_size=16 data.seq_length=1024"
    run = compose_estimated(["model=qwen2vl_2b", *shared.split(), *point["overrides"]])
    division = check_layout(run, point["gpus"])
    placement = make_placement(RunSettings(run), model_sizes(point["shape"]), division)
    batch = BatchShape(**{name: point[name] for name in BatchShape.__dataclass_fields__})
    assert peak(placement, batch) / GIB == pytest.approx(point["peak_gib"], rel=0.02)


@pytest.mark.parametrize(
    ("name", "parameters"),
    # of the hub's safetensors
    [
        ("2b", 2_208_985_600),
        ("Qwen2-VL-7B-Instruct", 8_291_375_616),
        ("3b25", 3_754_622_976),
        ("Qwen2.5-VL-7B-Instruct", 8_292_166_656),
    ],
)
def test_parameters_are_the_published_ones(name, parameters):
    placement = replace(PLACEMENT, sizes=model_sizes(name))
    last_norm = placement.sizes.shape.llm_width
    held, trained = stage_parameters(placement, 0)
    assert held + last_norm == parameters
    assert trained == held


@pytest.mark.parametrize("name", ["2b", "3b25"])
def test_sizes_of_a_folder_are_its_config(name, tmp_path):
    from dct_vl.model.random_model.shapes import config_2b, config_3b_25

    {"2b": config_2b, "3b25": config_3b_25}[name]().save_pretrained(tmp_path)
    found = model_sizes(str(tmp_path))
    assert replace(found, name=name) == model_sizes(name)


def test_models_without_sizes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no sizes for the model '/none'"):
        model_sizes("/none")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="describes 'llama'"):
        model_sizes(str(tmp_path))


def test_parallel_sizes_divide_what_they_should():
    alone, dp, tp = (
        stage_memory(replace(PLACEMENT, **k), BATCH, 0) for k in ({}, {"dp": 8}, {"tp": 2})
    )
    assert dp.optimizer == pytest.approx(alone.optimizer / 8)
    assert (dp.weights, dp.gradients) == (alone.weights, alone.gradients)
    assert tp.weights == pytest.approx(alone.weights / 2, rel=2e-3)  # the front end is whole
    assert alone.llm_activations / 2 < tp.llm_activations < alone.llm_activations
    with_sp = stage_memory(replace(PLACEMENT, tp=2, sequence_parallel=True), BATCH, 0)
    assert with_sp.llm_activations == pytest.approx(alone.llm_activations / 2)
    plain = stage_memory(replace(PLACEMENT, dp=8, distributed_optimizer=False), BATCH, 0)
    assert plain.optimizer == alone.optimizer


def test_context_parallel_ranks_share_rows_of_the_language_model_and_the_optimizer():
    alone, cp = (stage_memory(replace(PLACEMENT, cp=size), BATCH, 0) for size in (1, 2))
    assert cp.llm_activations == pytest.approx(alone.llm_activations / 2)
    assert cp.optimizer == alone.optimizer / 2
    assert (cp.weights, cp.vit_activations) == (alone.weights, alone.vit_activations)
    short = replace(BATCH, num_answers=BATCH.num_tokens)
    assert (
        stage_memory(replace(PLACEMENT, cp=4), short, 0).loss_and_buffers
        < stage_memory(PLACEMENT, short, 0).loss_and_buffers
    )
    text = {"picture": (28, 28), "text_tokens": 900, "num_gpus": 2}
    one, two = (
        estimated(f"trainer.context_parallel_size={size}", "data.max_pixels=3136", **text)
        for size in (1, 2)
    )
    assert two.data_parallel_size == 1
    # text is divided; of a picture both compute the tower
    assert two.step_seconds == pytest.approx(one.step_seconds, rel=0.02)
    seen = [
        estimated(f"trainer.context_parallel_size={size}", "tokenizer=pixel", num_gpus=2)
        for size in (1, 2)
    ]
    assert seen[1].step_seconds > 1.2 * seen[0].step_seconds
    assert seen[1].step_flops == pytest.approx(seen[0].step_flops)


def test_stages_share_the_parameters_and_hold_more_passes_the_earlier_they_are():
    placement = replace(PLACEMENT, pp=2, num_micro_batches=8)
    whole, _ = stage_parameters(PLACEMENT, 0)
    both = sum(stage_parameters(placement, stage)[0] for stage in (0, 1))
    assert both == whole + PLACEMENT.sizes.words  # the tied output layer is a copy
    untied = replace(placement, sizes=model_sizes("7b"))
    once = stage_parameters(replace(untied, pp=1), 0)[0]
    assert sum(stage_parameters(untied, stage)[0] for stage in (0, 1)) == once
    first, last = (stage_memory(placement, BATCH, stage) for stage in (0, 1))
    assert first.llm_activations == pytest.approx(2 * last.llm_activations)
    assert last.vit_activations == 0


def test_switches_do_what_they_are_for():
    for name, value in (
        ("fused_layers", False),
        ("answer_loss", False),
        ("fused_optimizer", False),
        ("half_precision", False),
    ):
        batch = replace(BATCH, num_cells=0, row_tokens=64) if name == "fused_optimizer" else BATCH
        assert peak(replace(PLACEMENT, **{name: value}), batch) > peak(PLACEMENT, batch), name
    recomputed = stage_memory(replace(PLACEMENT, recompute=True), BATCH, 0)
    kept = stage_memory(PLACEMENT, BATCH, 0)
    assert recomputed.vit_activations < 0.1 * kept.vit_activations


def test_what_is_frozen_needs_little():
    trained = stage_memory(PLACEMENT, BATCH, 0)
    frozen = stage_memory(
        replace(PLACEMENT, trained=frozenset({"projector", "language"})), BATCH, 0
    )
    assert frozen.weights == trained.weights
    assert frozen.gradients < trained.gradients
    assert frozen.vit_activations < 0.05 * trained.vit_activations
    assert frozen.llm_activations == trained.llm_activations
    lora = estimated("model.tuning=lora").typical_stages[0]
    assert lora.gradients < 0.1 * trained.gradients


def test_the_mlps_input_is_kept_where_its_second_product_is_adapted():
    few, all_but_one, every = (
        estimated("model.tuning=lora", *targets).typical_stages[0].llm_activations
        for targets in (
            ["model.lora.target_modules=[language_model.*.linear_qkv]"],
            ["model.lora.target_modules=[linear_qkv,linear_proj,linear_fc1]"],
            [],
        )
    )
    assert few == all_but_one < every


def test_time_follows_flops_and_layout():
    one = estimated("trainer.global_batch_size=64", "trainer.micro_batch_size=1")
    eight = estimated("trainer.global_batch_size=64", num_gpus=8)
    assert one.step_seconds == pytest.approx(8 * eight.step_seconds)
    # 6 · N · T + attention of 384 tokens and 1,024 patches: see test_flops
    pixel = estimated("tokenizer=pixel", "trainer.global_batch_size=16")
    assert pixel.tokens_per_picture == 256
    assert pixel.step_flops == pytest.approx(16 * 7.6e12, rel=0.02)
    slower = estimated("tokenizer=pixel", "trainer.global_batch_size=16", "speed.recompute=true")
    assert slower.step_seconds == pytest.approx(pixel.step_seconds * 4 / 3)
    piped = estimated(
        "trainer.pipeline_parallel_size=2",
        "trainer.micro_batch_size=8",
        "trainer.global_batch_size=64",
        num_gpus=2,
    )
    assert piped.step_seconds == pytest.approx(one.step_seconds / 2 * (1 + 1 / 8))


def test_packs_hold_many_samples_and_never_too_many_patches():
    packed = estimated("data.packing=true", "data.seq_length=4096")
    assert packed.typical.row_tokens == 4096
    assert packed.samples_per_step == pytest.approx(4 * 0.97 * 4096 / 192)
    capped = estimated(
        "data.packing=true", "data.seq_length=4096", "data.max_patches_per_pack=1024"
    )
    assert capped.typical.num_cells == capped.fullest.num_cells == 1024
    with pytest.raises(ConfigError, match=r"longer than data\.seq_length=128"):
        estimated("data.seq_length=128")


def invoke(*arguments: str) -> Any:
    app = Typer()
    app.command()(estimate_command)
    return CliRunner().invoke(app, list(arguments), catch_exceptions=True)


def test_the_command_prints_a_table_and_what_would_fit():
    arguments = ["model=qwen2vl_7b", "trainer.micro_batch_size=4", "trainer.global_batch_size=64"]
    done = invoke(*arguments, "data.packing=true", "--gpus", "8", "--device", "H100")
    assert done.exit_code == 0, done.output
    for words in ("8 × H100: TP 1 · PP 1 · CP 1 · DP 8", "DOES NOT FIT", "Would fit:", "TP_SIZE=2"):
        assert words in done.output
    as_json = json.loads(invoke(*arguments, "--gpus", "8", "--json").output)
    assert as_json["fits"] is True
    assert as_json["typical_peak_gib"] <= as_json["fullest_peak_gib"]
    assert as_json["samples_per_day"] == pytest.approx(86400 * as_json["samples_per_second"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--picture", "big"], "expected HEIGHTxWIDTH"),
        (["--mfu", "40"], "a share between 0 and 1"),
        (["--device", "Abacus"], "is not known"),
        (["--gpus", "3"], "GBS=4 is not divisible"),
        (["--text", "0"], "expected at least 1"),
        (["--answers", "-5"], "--answers -5; expected at least 0"),
        (["--picture", "10x5000"], "has aspect ratio 500"),
        (["data.max_pixels=10"], "expected 0 < min_pixels <= max_pixels"),
        (["model.tuning=lora", "model.lora.rank=0"], "model.lora.rank=0; expected"),
        (["trainer.tensor_parallel_size=4", "--gpus", "4"], "the model's 2 key-value heads"),
        (["trainer.pipeline_parallel_size=3", "--gpus", "3"], "the model's 28 layers"),
    ],
)
def test_wrong_arguments_say_what_was_expected(arguments, message):
    done = invoke("model=qwen2vl_2b", *arguments)
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)


def test_a_pack_full_of_pictures_may_not_fit_where_a_typical_one_does():
    settings = ["experiment=scale/qwen2vl_2b_1gpu", "--picture", "480x640", "--device", "H100"]
    done = invoke(*settings)
    assert "TYPICAL FITS, FULLEST DOES NOT (data.max_patches_per_pack bounds it)" in done.output
    bounded = [*settings, "data.max_patches_per_pack=16384"]
    assert "  fits: H100 has" in invoke(*bounded).output
    assert json.loads(invoke(*bounded, "--json").output)["fullest_fits"] is True


def test_the_fullest_pack_takes_no_less_than_a_typical_one():
    settings = ["experiment=scale/qwen25vl_3b_1gpu", "speed.recompute=true"]
    found = json.loads(invoke(*settings, "--picture", "480x640", "--json").output)
    assert found["typical_peak_gib"] <= found["fullest_peak_gib"]


def test_where_nothing_fits_it_says_what_else_may():
    done = invoke("model=qwen2vl_7b", "--device", "L4")
    assert "Would fit" not in done.output
    assert "more GPUs, model.tuning=lora" in done.output
