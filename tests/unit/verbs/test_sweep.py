"""Jobs of a sweep get a folder each."""

import pytest

from dct_vl.errors import ConfigError
from dct_vl.verbs.fit import job_name, swept_keys


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


def test_only_what_a_sweep_varies_is_in_its_names():
    words = ["-m", "seed=1,2", "++tokenizer.luma_keep=range(8,14)", "data.path='/a,b'"]
    words += ["model.lora.also_train=[vision,projector]", "optim.lr=1e-5"]
    assert swept_keys(words) == ["seed", "tokenizer.luma_keep"]
    with pytest.raises(ConfigError, match="seed=1=2: the value cannot be read"):
        swept_keys(["-m", "seed=1=2"])
