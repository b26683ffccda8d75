"""LoRA with rates by part: a resumed run goes on exactly, and its checkpoints are whole models."""

from __future__ import annotations

import json

import pytest
import torch

pytestmark = pytest.mark.slow

LORA = (
    "model.tuning=lora",
    'model.lora.target_modules=["*.layers.*.linear_qkv","*.layers.*.linear_fc1"]',
    "model.lora.rank=4",
    "optim.lr_front_end=6e-4",
    "optim.lr_projector=1e-4",
    "trainer.max_steps=4",
    "trainer.save_every=2",
    "trainer.val_every=0",
)


@pytest.fixture(scope="module")
def lora(train):
    return train("lora", *LORA)


@pytest.fixture(scope="module")
def divided(train, lora):
    """The second half of the run on two tensor-parallel ranks."""
    return train(
        "lora_divided",
        *LORA,
        "trainer.tensor_parallel_size=2",
        f"trainer.resume={lora.checkpoint(2)}",
        ranks=2,
    )


def test_a_resumed_run_repeats_the_uninterrupted_one(train, lora):
    run = train("lora_resumed", *LORA, f"trainer.resume={lora.checkpoint(2)}")
    for name in ("loss", "grad_norm", "lr"):
        assert run.values(name) == lora.values(name, first=3), name


def test_what_adapters_drop_does_not_depend_on_restarts(train):
    """Two replicas, each of which drops other inputs."""
    dropping = (*LORA, "model.lora.dropout=0.1", "data.num_workers=1")
    whole = train("lora_dropout", *dropping, ranks=2)
    path = whole.checkpoint(2)
    run = train("lora_dropout_resumed", *dropping, f"trainer.resume={path}", ranks=2)
    assert run.values("loss") == whole.values("loss", first=3)


def test_a_checkpoint_fits_another_layout(divided, lora):
    assert divided.values("loss") == pytest.approx(lora.values("loss", first=3), rel=1e-5)
    assert divided.values("grad_norm") == pytest.approx(lora.values("grad_norm", first=3), rel=1e-4)


def test_adapters_start_at_the_base_model(lora, reference):
    assert lora.values("loss")[0] == reference.values("loss")[0]
    assert lora.values("loss")[1] != reference.values("loss")[1]


def test_the_base_rate_is_logged(lora):
    """Not that of the first group; warmup over two steps, then the cosine from the third on."""
    assert lora.values("lr")[:3] == pytest.approx([1e-4, 2e-4, 3e-4])


def test_parameters_are_counted_in_every_layout(lora, divided):
    found = [json.loads((run.folder / "parameters.json").read_text()) for run in (lora, divided)]
    assert found[0] == found[1]
    parts = found[0]["parts"]
    assert parts["front_end"]["trained"] == parts["front_end"]["total"] > 0
    assert parts["language"]["trained"] == parts["language"]["adapters"] > 0
    assert found[0]["trained"] == sum(part["trained"] for part in parts.values())


def test_merged_weights_answer_like_adapters(divided):
    """From a checkpoint of two ranks: the adapters of gated and of plain MLPs find their rows."""
    from dct_vl.inference.loading import load_checkpoint
    from dct_vl.inputs.batch import Batch

    models = [load_checkpoint(divided.folder, merge=merge).module for merge in (True, False)]
    names = [set(dict(model.named_parameters())) for model in models]
    assert not any("adapter" in name for name in names[0])
    assert any("adapter" in name for name in names[1])
    ids = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    inputs = Batch(input_ids=ids, position_ids=torch.arange(9).expand(3, 2, 9))
    with torch.no_grad():
        merged, unmerged = (model(inputs) for model in models)
    assert (merged - unmerged).abs().max() < 1e-5
