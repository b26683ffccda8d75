"""Attention from parts of a sequence equals attention over the whole; what cannot divide is said.

That whole trainings agree is held by `layout-check`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dct_vl.errors import ConfigError
from dct_vl.runs.checks import check_model_layout, check_parts
from dct_vl.runs.config.schema import DataConfig, ModelConfig, RunConfig, TrainerConfig

ROOT = Path(__file__).resolve().parents[3]


def test_attention_from_parts(tmp_path):
    """Each of two key-value heads goes to two of four ranks."""
    size, heads, groups = 4, 4, 2
    script = Path(__file__).with_name("sequence_parts.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    store = str(tmp_path / "store")
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(size), str(heads), str(groups), store],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0, errors


@pytest.mark.parametrize(
    ("cp", "tp", "message"),
    [
        (2, 1, None),
        (4, 1, None),  # each key-value head goes to two ranks
        (3, 1, "CP_SIZE=3 does not divide the model's 2 key-value heads"),
        (8, 1, "CP_SIZE=8 does not divide the model's 12 attention heads"),
        (4, 2, "CP_SIZE=4 does not divide the model's 6 attention heads of a tensor-parallel"),
    ],
)
def test_heads_that_do_not_divide(tmp_path, cp, tp, message):
    heads = {"num_attention_heads": 12, "num_key_value_heads": 2, "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(heads))
    trainer = TrainerConfig(context_parallel_size=cp, tensor_parallel_size=tp)
    run = RunConfig(model=ModelConfig(path=str(tmp_path)), trainer=trainer)
    if message is None:
        check_model_layout(run)
        return
    with pytest.raises(ConfigError, match=message):
        check_model_layout(run)


@pytest.mark.parametrize(
    ("data", "trainer", "message"),
    [
        ({"packing": True}, {"context_parallel_size": 2}, "CP_SIZE=2 parts: set it to 2048"),
        ({}, {"context_parallel_size": 2, "pipeline_parallel_size": 2}, "set it to 2048"),
        (
            {"packing": True},
            {"tensor_parallel_size": 2, "sequence_parallel": True},
            "seq_length=2049 does not divide into TP_SIZE=2 parts, .* set it to 2048",
        ),
        ({}, {"context_parallel_size": 2}, None),  # rows are padded to what divides
    ],
)
def test_rows_that_do_not_divide(data, trainer, message):
    run = RunConfig(data=DataConfig(seq_length=2049, **data), trainer=TrainerConfig(**trainer))
    if message is None:
        check_parts(run)
        return
    with pytest.raises(ConfigError, match=message):
        check_parts(run)


def test_transformer_engine_gets_the_heads_of_one_rank():
    """Its attention then sees whole sequences, and does not know of the ranks."""
    from dct_vl.model.context_parallel import config_of_one_rank

    sizes = {"context_parallel_size": 4, "tensor_parallel_size": 1}
    config = SimpleNamespace(
        num_attention_heads=12, num_query_groups=2, tensor_model_parallel_size=1, **sizes
    )
    own = config_of_one_rank(config)
    assert (own.num_attention_heads, own.num_query_groups, own.context_parallel_size) == (3, 1, 1)
    assert config.context_parallel_size == 4
    config.tensor_model_parallel_size, config.context_parallel_size = 2, 2
    own = config_of_one_rank(config)
    # of each tensor-parallel rank: 3 heads, and its one key-value head on both ranks
    assert (own.num_attention_heads, own.num_query_groups) == (6, 2)
