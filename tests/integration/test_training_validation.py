"""Validation beside steps of several micro batches."""

from __future__ import annotations


def test_a_validation_takes_no_less_than_a_step(train, reference):
    """One micro batch is asked for and a step has two; none at all were taken."""
    few = train("few", "trainer.val_batches=1", "trainer.stop_at_step=3")
    assert few.validation() == {3: reference.validation()[3]}
