"""Packed runs: several samples a row, whatever the layout, and exact when resumed."""

from __future__ import annotations

from collections import Counter

import pytest

pytestmark = pytest.mark.slow

#: packs of 256 tokens hold two to five samples; the buffer is far from empty at the checkpoint
PACKED = (
    "data.packing=on",
    "data.packing_buffer_size=24",
    "data.shuffle_buffer_size=8",
    "trainer.val_every=6",
)
SEQ_LENGTH = 256


@pytest.fixture(scope="module")
def packed(train):
    return train("packed", *PACKED)


def assert_same(run, packed, rel):
    assert run.ledger() == packed.ledger()
    assert run.values("loss") == pytest.approx(packed.values("loss"), rel=rel)
    assert run.values("grad_norm") == pytest.approx(packed.values("grad_norm"), rel=10 * rel)


def test_rows_are_full_of_distinct_samples(packed, reference):
    tokens = [packed.values(f"num_{kind}_tokens") for kind in ("text", "visual", "padding")]
    assert [sum(step) for step in zip(*tokens, strict=True)] == [4 * SEQ_LENGTH] * 6
    assert sum(tokens[2]) < 0.15 * 6 * 4 * SEQ_LENGTH
    samples = packed.values("num_samples")
    assert samples == [len(keys) for keys in packed.ledger().values()]
    assert sum(samples) > 1.5 * 6 * 4, "more samples than rows"
    times = Counter(key for keys in packed.ledger().values() for key in keys)
    assert set(times.values()) == {1}
    losses = packed.values("loss")
    assert losses[-1] < losses[0] - 0.5
    # validation keeps one sample a row, so the losses of both kinds of run can be compared
    assert packed.validation()[6] == pytest.approx(reference.validation()[6], abs=0.5)


def test_a_resumed_run_repeats_the_packs(train, packed):
    run = train("packed_resumed", *PACKED, f"trainer.resume={packed.checkpoint(3)}")
    assert run.ledger() == packed.ledger(4)
    for name in ("loss", "grad_norm", "num_samples", "num_padding_tokens"):
        assert run.values(name) == packed.values(name, 4), name


def test_tensor_parallel_ranks_change_nothing(train, packed):
    layout = ("trainer.tensor_parallel_size=2", "trainer.sequence_parallel=true")
    run = train("packed_tp", *PACKED, *layout, "trainer.save_every=-1", ranks=2)
    assert_same(run, packed, rel=1e-5)


def test_pipeline_stages_change_nothing(train, packed):
    layout = ("trainer.pipeline_parallel_size=2", "trainer.save_every=-1")
    run = train("packed_pp", *PACKED, *layout, ranks=2)
    assert_same(run, packed, rel=1e-5)
