"""Which ranks drop the same inputs of adapters, over a layout of 16 that nobody has to start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product

import pytest

from dct_vl.shipped import ROOT

#: what a rank of TP 2 × CP 2 × DP 2 × PP 2 draws in two micro batches; the groups are Megatron's
#: own, made by a backend that sends nothing
DRAWS = """
import json
from types import SimpleNamespace

from dct_vl.compat import activate

activate()

import torch
from megatron.core import parallel_state as ps
from torch.testing._internal.distributed.fake_pg import FakeStore

from dct_vl.training.module import QwenVLModule

found = []
for rank in range(16):
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=16)
    ps.initialize_model_parallel(2, 2, context_parallel_size=2, create_gloo_process_groups=False)
    model = SimpleNamespace(
        seed=1, trainer=SimpleNamespace(global_step=3), meter=SimpleNamespace(micro_batches=[0])
    )
    draws = []
    for _ in range(2):
        QwenVLModule._seed_dropout(model)
        draws.append(torch.nn.functional.dropout(torch.ones(64), 0.5).tolist())
        model.meter.micro_batches.append(0)
    found.append(
        {
            "place": [
                ps.get_pipeline_model_parallel_rank(),
                ps.get_data_parallel_rank(),
                ps.get_context_parallel_rank(),
            ],
            "tensor": ps.get_tensor_model_parallel_rank(),
            "draws": draws,
        }
    )
    ps.destroy_model_parallel()
    torch.distributed.destroy_process_group()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    done = subprocess.run(
        [sys.executable, "-c", DRAWS],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_tensor_parallel_ranks_drop_the_same(ranks):
    by_place: dict[tuple, list] = {}
    for rank in ranks:
        by_place.setdefault(tuple(rank["place"]), []).append(rank)
    assert set(by_place) == set(product((0, 1), repeat=3))
    for both in by_place.values():
        assert {rank["tensor"] for rank in both} == {0, 1}
        assert both[0]["draws"] == both[1]["draws"]


def test_all_others_and_every_micro_batch_drop_differently(ranks):
    drawn = {tuple(draw) for rank in ranks for draw in rank["draws"]}
    assert len(drawn) == 8 * 2
