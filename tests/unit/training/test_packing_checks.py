"""What packing cannot do is said before anything starts."""

from __future__ import annotations

import pytest

from dct_vl.errors import ConfigError
from dct_vl.runs.checks import check_packing
from dct_vl.runs.config.schema import DataConfig, RunConfig


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"packing_buffer_size": 0}, "data.packing_buffer_size is 0; expected at least 1"),
        ({"max_patches_per_pack": 0}, "data.max_patches_per_pack is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(data, message):
    run = RunConfig(data=DataConfig(packing=True, **data))
    with pytest.raises(ConfigError, match=message):
        check_packing(run)
    run.data.packing = False
    check_packing(run)
