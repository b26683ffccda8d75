"""Epochs of real runs, in their ledgers; runs that mixed epochs resume as they were."""

from __future__ import annotations

import json

import pytest
from test_training_resume import assert_goes_on_exactly

from dct_vl.runs.checkpoint_files import META_NAME
from dct_vl.runs.ledger import summarize

pytestmark = pytest.mark.slow

SHORT = ("trainer.val_every=0", "trainer.micro_batch_size=1")


def test_every_sample_is_seen_once_before_any_twice(train):
    """Two ranks with two loader processes each, and the default buffer, ten times the set."""
    settings = ("trainer.max_steps=30", "trainer.save_every=-1")
    run = train("epoch", *SHORT, *settings, ranks=2)
    first, rest = summarize(run.folder).epochs
    assert (first.num_consumed, first.num_once, first.num_never) == (119, 119, 0)
    assert rest.num_consumed == 1


def test_a_run_of_before_goes_on_as_it_was(train):
    """Neither its checkpoints nor its config.yaml say that it mixes epochs."""
    whole = train("mixing", *SHORT, "data.mix_epochs=true")
    checkpoint = whole.checkpoint(3)
    meta = json.loads((checkpoint / META_NAME).read_text())
    assert meta.pop("data.mix_epochs") is True
    (checkpoint / META_NAME).write_text(json.dumps(meta))
    run = train("mixing_resumed", *SHORT, f"trainer.resume={checkpoint}")
    assert_goes_on_exactly(run, whole)
    refused = train.attempt("other", "data.mix_epochs=false", f"trainer.resume={checkpoint}")
    assert "trained with data.mix_epochs = True, this run has False" in refused.stderr
