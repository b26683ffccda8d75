"""Training with the fused parts, which are off by default without a GPU, gives the same figures."""

from __future__ import annotations

import pytest

FUSED = (
    "speed.fused_layers=true",
    "speed.answer_loss=true",
    "speed.fused_optimizer=true",
    "trainer.val_every=0",
)
LAYOUTS = {
    "one": ((), 1),
    "tp2": (("trainer.tensor_parallel_size=2",), 2),
    "tp2_sp": (("trainer.tensor_parallel_size=2", "trainer.sequence_parallel=true"), 2),
    "dp2": (("data.num_workers=1",), 2),
    "pp2": (("trainer.pipeline_parallel_size=2",), 2),
    "cp2": (("trainer.context_parallel_size=2",), 2),
    "one_replica_optimizer": (("trainer.distributed_optimizer=false",), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_gradients_are_those_of_megatrons_layers(train, reference, layout):
    overrides, ranks = LAYOUTS[layout]
    fused = train(f"fused_{layout}", *FUSED, *overrides, ranks=ranks)
    assert fused.values("loss") == pytest.approx(reference.values("loss"), rel=1e-5)
    assert fused.values("grad_norm") == pytest.approx(reference.values("grad_norm"), rel=1e-4)
