"""What packing cannot do is said before anything starts."""

from __future__ import annotations

import pytest

from training.config.checks import check_packing
from training.config.overrides import ConfigError
from training.config.schema import DataConfig, RunConfig, TrainerConfig


@pytest.mark.parametrize(
    ("data", "trainer", "message"),
    [
        ({"packing_buffer_size": 0}, {}, "data.packing_buffer_size is 0; expected at least 1"),
        ({"max_patches_per_pack": 0}, {}, "data.max_patches_per_pack is 0"),
        ({}, {"context_parallel_size": 2}, "CP_SIZE=2: .* set CP_SIZE=1 or data.packing=off"),
        (
            {"seq_length": 2049},
            {"tensor_parallel_size": 2, "sequence_parallel": True},
            "seq_length=2049 does not divide into TP_SIZE=2 parts, .* set it to 2048",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(data, trainer, message):
    run = RunConfig(data=DataConfig(packing=True, **data), trainer=TrainerConfig(**trainer))
    with pytest.raises(ConfigError, match=message):
        check_packing(run)
    run.data.packing = False
    check_packing(run)
