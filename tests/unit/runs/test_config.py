"""Settings: what is misspelt or impossible is refused with the numbers and the way out."""

from __future__ import annotations

import json
import shutil

import pytest

from data_prep.blend import BlendMember
from data_prep.blend import blend as write_blend
from dct_tokenizer.registry import list_presets, preset_config
from dct_vl.errors import ConfigError
from dct_vl.runs.checks import check_layout, check_run
from dct_vl.runs.config.compose import (
    GROUP_FOLDERS,
    check_overrides,
    compose_config,
    group_choices,
    known_keys,
)
from dct_vl.runs.data_checks import check_data_path

PATHS = ("data.path=DATA", "model.path=MODEL")


def compose(*overrides: str):
    return compose_config([*PATHS, *overrides])


def test_a_tokenizer_is_one_word():
    run = compose("tokenizer=dct14")
    assert run.tokenizer == preset_config("dct14")
    assert group_choices("tokenizer") == list_presets()


def test_an_experiment_sets_what_its_file_says():
    run = compose("experiment=quickstart/tiny", "optim.lr=0.5")
    assert (run.trainer.micro_batch_size, run.trainer.accelerator) == (16, "cpu")
    assert run.optim.lr == 0.5, "the command line wins"


def test_a_dropped_preset_is_a_choice(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("name: mine\nfamily: pixel\ncell: 14\n")
    monkeypatch.setitem(GROUP_FOLDERS, "tokenizer", tmp_path)
    assert group_choices("tokenizer") == ["mine"]
    assert check_overrides(["tokenizer=mine"]) == ["tokenizer=mine"]


def test_keys_below_the_tokenizer_are_its_own():
    assert check_overrides(["tokenizer.luma_keep=10"]) == ["++tokenizer.luma_keep=10"]
    assert compose("tokenizer=dct14", "tokenizer.luma_keep=10").tokenizer["luma_keep"] == 10


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_step=5", r"unknown key 'trainer.max_step'; did you mean trainer.max_steps"),
        ("lr=5", r"unknown key 'lr'; did you mean .*optim.lr"),
        ("data.sequence_length=5", r"unknown key .* did you mean data.seq_length"),
        ("zzz=5", "unknown key 'zzz'; known: experiment_name, log_dir"),
        ("tokenizer=dct41", "unknown tokenizer 'dct41'; did you mean dct14"),
        ("tokenizer=pixel,dct41", "unknown tokenizer 'dct41'"),
        ("experiment=quickstart/tniy", "unknown experiment .* did you mean quickstart/tiny"),
        ("model=qwen", "unknown model 'qwen'"),
        ("trainer", "'trainer' is not of the form key=value"),
        ("trainer.max_steps=abc", "trainer.max_steps=abc: Value 'abc' .* converted to Integer$"),
    ],
)
def test_what_is_misspelt_names_the_nearest(override, message):
    with pytest.raises(ConfigError, match=message):
        compose(override)


@pytest.mark.parametrize(
    "path",
    [
        *("/a,b", "/a=b", "/ü#1;x", "~/x", "/a (1)", "/a b", "/{a}[b]", "/it's", '/"a"', "a\\"),
        # numbers and switches of Hydra's
        *("2024_10", "1e3", "1.10", "007", "true", "nan", "[x]"),
    ],
)
def test_text_may_hold_any_character(path):
    run = compose(f"log_dir={path}", f"experiment_name={path}")
    assert (run.log_dir, run.experiment_name) == (path, path)


def test_text_in_quotes_of_its_own_and_references_stay_what_they_are():
    run = compose("log_dir='/a,b'", "experiment_name=s${seed}", "logger.wandb_project=null")
    assert (run.log_dir, run.experiment_name) == ("/a,b", "s1234")
    assert run.logger.wandb_project is None
    assert compose("model.lora.also_train=[vision,projector]").model.lora.also_train == [
        "vision",
        "projector",
    ]


def test_a_sweep_keeps_its_commas_and_says_which_value_needs_quotes():
    assert check_overrides(["-m", "model.path=/a,/b"]) == ["-m", "model.path=/a,/b"]
    with pytest.raises(ConfigError, match=r"needs quotes that reach the program: .*model\.path="):
        check_overrides(["-m", "model.path=/a=b"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--dryrun", "'--dryrun' is not of the form key=value"),
        ("-m", "'-m' is not of the form key=value .sweeps: dct-vl fit -m"),
        ("seed=a=b", "^seed=a=b: the value cannot be read: put text"),
    ],
)
def test_what_cannot_be_read_is_named(word, message):
    with pytest.raises(ConfigError, match=message):
        compose(word)


def test_what_has_no_default_must_be_given():
    with pytest.raises(ConfigError, match=r"data\.path must be set: add data\.path=…"):
        compose_config(["model.path=MODEL"])


def test_sections_and_keys_are_known():
    assert {"trainer", "trainer.max_steps", "optim.lr", "seed"} <= set(known_keys())


@pytest.mark.parametrize(
    ("overrides", "world_size", "message"),
    [
        (["trainer.micro_batch_size=0"], 1, r"MBS \(trainer.micro_batch_size\) is 0"),
        (["trainer.global_batch_size=0"], 1, r"GBS \(.*\) is 0; expected at least 1"),
        (["trainer.tensor_parallel_size=0"], 1, "TP_SIZE .* is 0"),
        (["trainer.pipeline_parallel_size=-1"], 1, "PP_SIZE .* is -1"),
        (["trainer.max_steps=0"], 1, "trainer.max_steps is 0"),
        (
            ["trainer.context_parallel_size=2", "trainer.tensor_parallel_size=2"],
            2,
            "TP_SIZE=2 × PP_SIZE=1 × CP_SIZE=2 = 4 needs 4 processes, but there are 2",
        ),
        (
            ["trainer.tensor_parallel_size=4", "trainer.pipeline_parallel_size=2"],
            4,
            "TP_SIZE=4 × PP_SIZE=2 = 8 needs 8 processes, but there are 4: lower them or raise",
        ),
        (
            ["trainer.tensor_parallel_size=2"],
            3,
            "3 processes cannot be divided into model replicas of TP_SIZE=2 × PP_SIZE=1 = 2",
        ),
        (
            ["trainer.micro_batch_size=3", "trainer.global_batch_size=16"],
            2,
            "GBS=16 is not divisible by MBS=3 × 2 data-parallel ranks = 6: set GBS=12 or 18",
        ),
        (
            ["trainer.micro_batch_size=8", "trainer.global_batch_size=4"],
            1,
            "GBS=4 is not divisible by MBS=8 × 1 data-parallel ranks = 8: set GBS=8",
        ),
        (["trainer.sequence_parallel=true"], 1, "sequence_parallel needs TP_SIZE > 1"),
    ],
)
def test_layouts_that_cannot_work(overrides, world_size, message):
    with pytest.raises(ConfigError, match=message):
        check_layout(compose(*overrides), world_size)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("experiment_name=", "experiment_name is empty: the run's folder is"),
        ("log_dir=", "log_dir is empty"),
        ("data.num_workers=-1", "data.num_workers is -1; expected at least 0"),
        ("data.max_rejects_in_a_row=0", "data.max_rejects_in_a_row is 0"),
        ("data.max_samples_per_sequence=0", "data.max_samples_per_sequence is 0"),
        ("data.shuffle_buffer_size=-1", "data.shuffle_buffer_size is -1"),
        ("data.worker_timeout_s=-1", "data.worker_timeout_s is -1"),
        ("trainer.stop_at_step=0", "trainer.stop_at_step is 0; expected at least 1"),
        ("trainer.save_every=-2", "trainer.save_every is -2; expected at least -1"),
        ("optim.lr=nan", "optim.lr is nan; expected at least 0"),
        ("optim.clip_grad=-1", "optim.clip_grad is -1"),
        ("optim.adam_beta1=1.5", "optim.adam_beta1 is 1.5; expected less than 1"),
        ("optim.lr=5e-7", "optim.min_lr=1e-06, .* is more than optim.lr=5e-07: .* to 5e-08"),
    ],
)
def test_numbers_and_names_that_mean_nothing(shards, override, message):
    with pytest.raises(ConfigError, match=message):
        check_run(compose(f"data.path={shards}", override), 1)


def test_a_model_whose_configuration_was_cut_off(shards, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2')
    with pytest.raises(
        ConfigError, match=r"config\.json cannot be read: it is no JSON .*: fetch it again"
    ):
        check_run(compose(f"data.path={shards}", f"model.path={tmp_path}"), 1)


def test_a_layout_that_works():
    run = compose(
        *("trainer.tensor_parallel_size=2", "trainer.micro_batch_size=2"),
        *("trainer.global_batch_size=24", "trainer.pipeline_parallel_size=2"),
    )
    division = check_layout(run, 8)
    assert (division.world_size, division.data_parallel_size, division.num_micro_batches) == (
        8,
        2,
        6,
    )


def test_pixel_bounds_and_tokenizer_are_checked(shards):
    where = f"data.path={shards}"
    with pytest.raises(ConfigError, match=r"MINPIXELS=900 is more than MAXPIXELS=800 .*swap them"):
        check_run(compose(where, "data.min_pixels=900", "data.max_pixels=800"), 1)
    with pytest.raises(ConfigError, match=r"tokenizer: dct14: .* has no key 'luma'"):
        check_run(compose(where, "tokenizer=dct14", "tokenizer.luma=3"), 1)
    assert check_run(compose(where), 1).data_parallel_size == 1


def test_the_vision_mlp_must_be_divisible_too(shards, tmp_path):
    """3420 channels in Qwen2.5-VL: no model of it divides over eight ranks."""
    sizes = {"num_attention_heads": 16, "num_key_value_heads": 8, "num_hidden_layers": 36}
    sizes |= {"hidden_size": 2048, "intermediate_size": 11008, "vocab_size": 151936}
    model = {
        "model_type": "qwen2_5_vl",
        **sizes,
        "rope_scaling": {"mrope_section": [16, 24, 24]},
        "vision_config": {"num_heads": 16, "intermediate_size": 3420},
    }
    (tmp_path / "config.json").write_text(json.dumps(model))
    run = compose(f"data.path={shards}", f"model.path={tmp_path}", "trainer.tensor_parallel_size=8")
    with pytest.raises(ConfigError, match="TP_SIZE=8 does not divide the model's 3420 channels"):
        check_run(run, 8)


def test_shards_that_are_gone_are_named(shards, tmp_path):
    copy = shutil.copytree(shards, tmp_path / "shards")
    check_data_path(str(copy))
    first, *others = sorted(copy.glob("*.tar"))
    first.unlink()
    with pytest.raises(ConfigError, match=rf"lacks 1 of the 10 shards .*{first.name}.*copy"):
        check_data_path(str(copy))
    for other in others:
        other.unlink()
    with pytest.raises(ConfigError, match=r"lacks 10 of the 10 shards .* …\): copy"):
        check_data_path(str(copy))
    (copy / "manifest.json").unlink()
    shutil.rmtree(copy / ".data_prep")
    with pytest.raises(ConfigError, match=r"lacks 10 of the shards that its splits name: .*; copy"):
        check_data_path(str(copy))


def test_the_data_path_must_be_prepared(tmp_path, shards):
    check_data_path(str(shards))
    with pytest.raises(ConfigError, match="DATA_PATH=/none does not exist: make the shards"):
        check_data_path("/none")
    with pytest.raises(ConfigError, match=r"has no \.nv-meta: run `energon prepare"):
        check_data_path(str(tmp_path))
    blend = tmp_path / "blend.yaml"
    blend.write_text("a: 1")
    with pytest.raises(ConfigError, match=r"blend\.yaml is no metadataset of Energon"):
        check_data_path(str(blend))
    write_blend(blend, [BlendMember(root=shards, weight=None)])
    check_data_path(str(blend))
