"""Every compatibility item is needed here and suffices here, proved in processes without it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dct_vl.compat import (
    ITEMS,
    activate,
    active_items,
    cuda,
    megatron,
)

SCRIPT = Path(__file__).with_name("compat_probes.py")
ROOT = SCRIPT.parents[3]

#: Items that are left out together, and what their probes then run into. Each set is one process;
#: items share one where the probe of one does not rest on the other.
SKIPPED: dict[frozenset[str], dict[str, str]] = {
    frozenset({"dynamo", "checkpoint-device", "torch-adam-state", "modelopt", "lora-layers"}): {
        "dynamo": "jit_fuser compiles",
        "checkpoint-device": "AssertionError",
        "torch-adam-state: fresh": "AssertionError",
        "torch-adam-state: own steps": "steps [5.0",
        "torch-adam-state: absent step": "KeyError('step')",
        "modelopt": "No module named 'modelopt'",
        "lora-layers": "transformer_engine.pytorch could not be imported",
    },
    # the last one imports what the first one makes importable
    frozenset({"narrow-imports", "cuda-redirect", "lora-layers"}): {
        "lora-layers": "could not be imported",
        "narrow-imports": "No module named",
        "cuda-redirect": "CUDA",
    },
}
#: items for machines with a GPU, tried in tests/gpu: test_busy_stream.py
ON_DEVICE = {"ddp-stream"}


def probe(skipped: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Outcome of compat_probes.py in a process of its own."""
    environ = {k: v for k, v in os.environ.items() if k != "TORCHDYNAMO_DISABLE"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), ",".join(sorted(skipped))],
        capture_output=True,
        text=True,
        env={**environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def complete() -> dict[str, Any]:
    return probe()


@pytest.mark.slow
def test_with_all_items_everything_works(complete):
    assert complete["failed"] == {}


@pytest.mark.slow
def test_exactly_the_needed_items_are_active(complete):
    assert complete["active"] == [item.name for item in ITEMS if item.needed()]


@pytest.mark.slow
@pytest.mark.parametrize("skipped", SKIPPED, ids=lambda names: "+".join(sorted(names)))
def test_without_an_item_its_probe_fails(skipped, complete):
    """Red after an upgrade: the item may have become unnecessary and can go."""
    needed = skipped & set(complete["active"])
    if not needed:
        pytest.skip("nothing of this is absent on this machine")
    found = probe(frozenset(needed))
    assert set(found["active"]) == set(complete["active"]) - needed
    for name, message in SKIPPED[skipped].items():
        if name.partition(":")[0] in needed:
            assert message in found["failed"].get(name, "it worked"), name


def test_every_item_that_is_needed_here_is_probed():
    probed = {name.partition(":")[0] for probes in SKIPPED.values() for name in probes}
    assert set().union(*SKIPPED) == probed
    assert {item.name for item in ITEMS if item.needed()} <= probed | ON_DEVICE
    assert probed | ON_DEVICE <= {item.name for item in ITEMS}


def test_every_item_says_why():
    assert all(len(item.reason) > 40 for item in ITEMS)
    assert len({item.name for item in ITEMS}) == len(ITEMS)


def test_numpy_2_gets_its_product_back(monkeypatch):
    """This machine has NumPy 1, where nothing is amiss."""
    monkeypatch.delattr(np, "product", raising=False)
    assert megatron.product_is_missing()
    monkeypatch.setattr(np, "product", None, raising=False)
    megatron.restore_product()
    assert np.product([2, 3]) == 6
    assert not megatron.product_is_missing()


def test_packages_that_need_cuda_are_hidden_without_it(monkeypatch, tmp_path):
    """An Apex that can be imported, on a machine without CUDA."""
    (tmp_path / "apex.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("apex", "transformer_engine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert megatron.installed_without_cuda()
    assert not megatron.fused_adam_is_missing()
    for name in ("apex", "transformer_engine"):
        monkeypatch.setitem(sys.modules, name, sys)
    megatron.hide_cuda_packages()
    with pytest.raises(ImportError):
        importlib.import_module("apex")
    assert not megatron.installed_without_cuda()
    assert megatron.fused_adam_is_missing()


def test_an_unknown_item_cannot_be_skipped():
    with pytest.raises(ValueError, match=r"unknown items \['cuda'\]; known: \['dynamo'"):
        activate(skip={"cuda"})


def test_activation_happens_once():
    first = activate()
    assert activate(skip={"dynamo"}) == first == tuple(item.name for item in active_items())


def test_the_users_word_on_dynamo_wins(monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "0")
    cuda.disable_dynamo()
    assert os.environ["TORCHDYNAMO_DISABLE"] == "0"
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    cuda.disable_dynamo()
    assert os.environ["TORCHDYNAMO_DISABLE"] == "1"
