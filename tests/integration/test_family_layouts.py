"""Tokenizer families, LoRA and tokenizer-only training on tensor- and pipeline-parallel ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
CASES = (
    "pixel",
    "dct28_420",
    "dct28_420 not whitened",
    "dct14_t4",
    "pixel_downscale",
    "pixel28",
    "post_dct",
    "adaptive",
    "lora",
    "tokenizer_only",
    "pixel, 2.5",
    "adaptive, 2.5",
)


@pytest.fixture(scope="module")
def found(
    tiny_model: Path, tiny_model_25: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Losses and gradient norms of all cases in all layouts; see family_steps.py."""
    output = tmp_path_factory.mktemp("families") / "found.json"
    script = Path(__file__).with_name("family_steps.py")
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2"]
    where = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    files = map(str, (script, tiny_model, tiny_model_25, output))
    done = subprocess.run(
        [sys.executable, *torchrun, *where, *files],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-8000:]
    return json.loads(output.read_text())


def test_all_cases_ran(found):
    assert tuple(found) == CASES


@pytest.mark.parametrize("layout", ["tp2", "tp2_sp", "pp2"])
@pytest.mark.parametrize("case", CASES)
def test_layouts_change_nothing(found, case, layout):
    one, divided = found[case]["one"], found[case][layout]
    assert len(one["losses"]) == len(one["norms"]) == 3
    assert min(one["norms"]) > 0
    assert divided["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert divided["norms"] == pytest.approx(one["norms"], rel=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_what_is_trained_changes_and_nothing_else_does(found, case):
    """Frozen tensors keep every bit; every trained one moves."""
    assert list(found[case]) == ["one", "tp2", "tp2_sp", "pp2"]
    assert not any(run["wrong"] for run in found[case].values())


def test_adapters_and_parts_start_at_the_whole_models_loss(found):
    first = {case: found[case]["one"]["losses"][0] for case in CASES}
    assert first["lora"] == first["tokenizer_only"] == first["dct28_420"]
    second = {case: found[case]["one"]["losses"][1] for case in CASES}
    assert len(set(second.values())) == len(CASES)
