"""Jobs of a sweep get a folder each."""

import pytest

from training.cli import job_name


@pytest.mark.parametrize(
    ("overrides", "swept", "expected"),
    [
        (["tokenizer=dct14", "data.path=w"], ["tokenizer"], "dct14"),
        (["optim.lr=1e-5"], ["optim.lr"], "lr_1e-5"),
        (["tokenizer=pixel", "seed=2"], ["tokenizer", "seed"], "pixel-seed_2"),
        (["experiment_name=a", "seed=2"], ["seed"], "a-seed_2"),
        (["experiment=dct_tokenizer/pixel"], ["experiment"], "dct_tokenizer_pixel"),
        (["++tokenizer.luma_keep=10"], ["tokenizer.luma_keep"], "luma_keep_10"),
        (["seed=1"], [], "default"),
    ],
)
def test_a_job_is_named_after_what_the_sweep_varies(overrides, swept, expected):
    assert job_name(overrides, swept) == expected
