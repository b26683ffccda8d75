"""Bad steps are found, and their samples named."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from dct_vl.errors import ConfigError, RunError
from dct_vl.runs.checks import check_guards
from dct_vl.runs.config.compose import compose_config
from dct_vl.runs.run_files import read_json_lines
from dct_vl.training.watch.guard_rails import (
    BAD_STEPS_NAME,
    MOST_IN_A_ROW,
    GuardRails,
    SpikeMeter,
    describe_losses,
)
from dct_vl.training.watch.metering import MicroBatch


def test_what_is_not_finite_is_bad():
    meter = SpikeMeter()
    assert meter.judge(2.0, 1.0) is None
    assert meter.judge(math.inf, 1.0) == "the loss is not finite"
    assert meter.judge(2.0, math.inf) == "the gradient norm is inf"
    assert meter.judge(1e9, None) is None, "no factor, no spike"
    assert list(meter.losses) == [2.0, 1e9]


def test_a_spike_is_measured_against_good_losses():
    meter = SpikeMeter(3.0)
    assert meter.judge(100.0, 1.0) is None, "too few before it"
    for _ in range(12):
        assert meter.judge(2.0, 1.0) is None
    for _ in range(50):
        assert "the loss is 6.5, 3.2 times the usual 2" in meter.judge(6.5, 1.0)
    assert meter.judge(5.9, 1.0) is None


@pytest.fixture
def skipping(build_module, tmp_path):
    """skip(gradient norm) → (was the update made, what ends the run)"""
    rails = GuardRails(
        tmp_path, policy="skip", spike_factor=0.0, speed_up=SimpleNamespace(pending=None)
    )
    optimizer = SimpleNamespace(get_grad_norm=lambda: norms[-1], step_with_ready_grads=lambda: True)
    trainer = SimpleNamespace(
        global_step=4,
        is_global_zero=True,
        optimizers=[SimpleNamespace(mcore_optimizer=optimizer)],
    )
    reduction = SimpleNamespace(latest=torch.tensor(2.0), sums=torch.tensor([[4.0, 2.0]]))
    meter = SimpleNamespace(micro_batches=[batch("a")])
    module = SimpleNamespace(training_loss_reduction=reduction, meter=meter)
    norms: list[float] = []
    rails.on_train_start(trainer, module)

    def skip(norm: float) -> tuple[bool, str | None]:
        norms.append(norm)
        optimizer.get_grad_norm()
        updated = optimizer.step_with_ready_grads()
        try:
            rails.on_train_batch_end()
        except RunError as error:
            return updated, str(error)
        return updated, None

    return skip


def test_a_run_that_would_leave_out_every_update_ends(skipping, tmp_path):
    for _ in range(MOST_IN_A_ROW - 1):
        assert skipping(math.nan) == (False, None)
    assert skipping(1.0) == (True, None), "a good one begins the count anew"
    for _ in range(MOST_IN_A_ROW - 1):
        assert skipping(math.nan) == (False, None)
    updated, error = skipping(math.nan)
    assert not updated
    assert "step 5: the gradient norm is inf; " in error
    assert "10th in a row" in error
    assert "trainer.resume=PATH" in error
    assert len(read_json_lines(tmp_path / BAD_STEPS_NAME / "dp0000.jsonl")) == 2 * MOST_IN_A_ROW - 1


def batch(*keys: str) -> MicroBatch:
    return MicroBatch(
        sample_keys=keys,
        num_rows=1,
        row_length=8,
        num_text_tokens=4,
        num_visual_tokens=2,
        num_padding_tokens=2,
        num_cells=8,
        longest_segment=4,
    )


def test_each_micro_batch_has_its_loss():
    sums = torch.tensor([[6.0, 3.0], [1.0, 0.0], [4.0, 2.0]])
    assert describe_losses([batch("a", "b"), batch("c"), batch("d")], sums) == [
        {"loss": 2.0, "keys": ["a", "b"]},
        {"loss": None, "keys": ["c"]},
        {"loss": 2.0, "keys": ["d"]},
    ]
    assert math.isnan(describe_losses([batch("a")], None)[0]["loss"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["trainer.on_bad_loss=halt"], "expected stop, skip or ignore"),
        (["trainer.spike_factor=0.5"], "calls ordinary losses spikes"),
        (["trainer.keep_best=-1"], "expected 0 or more"),
        (["trainer.keep_best=1", "trainer.val_every=300"], r"val_every=300 must be a multiple of"),
        (["trainer.keep_best=1", "trainer.save_every=0"], "needs a checkpoint at every validation"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    run = compose_config(["data.path=d", "model.path=m", "tokenizer=pixel", *settings])
    with pytest.raises(ConfigError, match=message):
        check_guards(run)
