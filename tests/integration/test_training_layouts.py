"""Losses do not depend on how processes are laid out, nor on the day."""

from __future__ import annotations

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dct_vl.training.watch.metering import StepMeter
from dct_vl.training.watch.step_log import CURVES

pytestmark = pytest.mark.slow

#: Losses of the first four steps of the tiny model of tests/conftest.py with the settings of
#: conftest.py, by tokenizer. They were read from steps.jsonl of these very runs (one process,
#: CPU, float32, torch 2.13.0, Pillow 13.0.0) once the logits of the same folder equalled those of
#: transformers 4.51.3 and the losses of other layouts these. They change with the drawn pictures,
#: the tiny model, the sample order of Energon and anything that the model computes.
GOLDEN = {
    "dct28_420": [6.482841, 6.436174, 6.527974, 5.863734],
    "pixel": [6.512062, 6.550720, 6.691595, 5.917868],
    # in the order of samples that runs of former versions have
    "pixel, epochs mixed": [6.489687, 6.570522, 6.187383, 6.093378],
}


@pytest.fixture(scope="module")
def pixel(train):
    return train("pixel", "tokenizer=pixel", "trainer.stop_at_step=4", "trainer.save_every=-1")


def test_golden_losses_of_dct28_420(reference):
    assert reference.values("loss")[:4] == pytest.approx(GOLDEN["dct28_420"], abs=1e-4)


def test_golden_losses_of_pixel(pixel):
    assert pixel.values("loss") == pytest.approx(GOLDEN["pixel"], abs=1e-4)


def test_golden_losses_of_mixed_epochs(train):
    steps = ("trainer.stop_at_step=4", "trainer.save_every=-1")
    run = train("mixed_epochs", "tokenizer=pixel", "data.mix_epochs=true", *steps)
    assert run.values("loss") == pytest.approx(GOLDEN["pixel, epochs mixed"], abs=1e-4)


def test_faster_ways_change_nothing(train, pixel):
    """The switches that are on with CUDA, by hand on the CPU, where nothing is compiled."""
    switches = ("fused_layers", "answer_loss", "fused_optimizer")
    run = train(
        "fast",
        "tokenizer=pixel",
        "trainer.stop_at_step=4",
        "trainer.save_every=-1",
        *(f"speed.{name}=true" for name in switches),
        "logger.tensorboard=true",
    )
    assert run.values("loss") == pytest.approx(pixel.values("loss"), rel=1e-5)
    assert run.values("grad_norm") == pytest.approx(pixel.values("grad_norm"), rel=1e-4)
    assert all(rate > 0 for rate in run.values("tflops"))
    assert all(0 < share < 1 for share in run.values("data_wait_share"))
    assert run.values("mfu") == [None] * 4  # no known peak
    logged = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert set(CURVES.values()) - set(logged.Tags()["scalars"]) == {"device/mfu"}
    visual = [scalar.value for scalar in logged.Scalars("rates/visual_tokens_per_second")]
    assert visual == pytest.approx(run.values("visual_tokens_per_second"))


def test_faster_ways_divide_over_tensor_parallel_ranks(train, pixel):
    """Vocabulary, gradient norm and products are then each a part of the whole."""
    run = train(
        "fast_tensor_parallel",
        "tokenizer=pixel",
        "trainer.stop_at_step=4",
        "trainer.save_every=-1",
        "trainer.tensor_parallel_size=2",
        *(f"speed.{name}=true" for name in ("fused_layers", "answer_loss", "fused_optimizer")),
        ranks=2,
    )
    assert run.values("loss") == pytest.approx(pixel.values("loss"), rel=1e-4)
    assert run.values("grad_norm") == pytest.approx(pixel.values("grad_norm"), rel=1e-3)


def test_a_run_that_stops_early_keeps_its_schedule(reference, pixel):
    assert pixel.values("lr") == reference.values("lr")[:4]


def test_losses_fall(reference):
    losses = reference.values("loss")
    assert losses[-1] < losses[0] - 0.5


def test_the_tokenizer_changes_nothing_but_the_pictures(reference, pixel):
    """Same samples, same text; pictures of 112 to 149 pixels cost 3.3 times fewer tokens."""
    assert pixel.ledger() == {k: v for k, v in reference.ledger().items() if k <= 4}
    text = "num_text_tokens"
    assert pixel.values(text) == reference.values(text)[:4]
    tokens = "num_visual_tokens"
    ratio = sum(pixel.values(tokens)) / sum(reference.values(tokens)[:4])
    assert 3 < ratio <= 4
    assert pixel.values("num_cells") == [4 * n for n in pixel.values(tokens)]


def test_data_parallel_ranks_change_nothing(data_parallel, reference):
    """Two ranks with one loader process each read what one rank with two does."""
    run = data_parallel
    assert run.ledger() == reference.ledger()
    assert len(list((run.folder / "ledger").iterdir())) == 2
    assert run.values("loss") == pytest.approx(reference.values("loss"), rel=1e-4)
    assert run.values("grad_norm") == pytest.approx(reference.values("grad_norm"), rel=1e-3)
    others = {"sample_keys", "micro_batches", "num_padding_tokens"}
    for name in set(StepMeter.__dataclass_fields__) - others:
        assert run.values(name) == reference.values(name), name


def test_tensor_parallel_ranks_change_nothing(tensor_parallel, reference):
    assert tensor_parallel.ledger() == reference.ledger()
    assert tensor_parallel.values("loss") == pytest.approx(reference.values("loss"), rel=1e-4)
    norms = reference.values("grad_norm")
    assert tensor_parallel.values("grad_norm") == pytest.approx(norms, rel=1e-3)
    assert tensor_parallel.validation() == pytest.approx(reference.validation(), rel=1e-4)


def test_pipeline_stages_change_nothing(train, reference):
    run = train("pipeline", "trainer.pipeline_parallel_size=2", "trainer.save_every=-1", ranks=2)
    assert run.ledger() == reference.ledger()
    assert run.values("loss") == pytest.approx(reference.values("loss"), rel=1e-4)
    assert run.values("grad_norm") == pytest.approx(reference.values("grad_norm"), rel=1e-3)
    assert run.validation() == pytest.approx(reference.validation(), rel=1e-4)
