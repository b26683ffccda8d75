"""A step's gradients are divided by its tokens as Megatron does, and the device is not asked."""

from __future__ import annotations

import pytest
import torch

from dct_vl.compat import activate

activate()

from megatron.core.distributed import (  # noqa: E402
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig  # noqa: E402
from megatron.core.transformer.module import MegatronModule  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402

from dct_vl.inference.loading import start_single_process  # noqa: E402
from dct_vl.training.optim.optimizer import PartOptimizer, RunLongCosine  # noqa: E402


@pytest.fixture
def one_rank():
    # another test may have made the groups in this process; they serve all
    start_single_process()


class Layer(MegatronModule):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.ones(3))


def gradients(num_tokens: int, *, stock: bool) -> torch.Tensor:
    config = TransformerConfig(
        num_layers=1, hidden_size=4, num_attention_heads=1, calculate_per_token_loss=True
    )
    module = DistributedDataParallel(config, DistributedDataParallelConfig(), Layer(config))
    module.zero_grad_buffer()
    (module.module.weight * torch.tensor([1.0, 2.0, 4.0])).sum().backward()
    schedule = RunLongCosine(num_steps=2, warmup_steps=1, min_lr=0.0)
    ours = PartOptimizer(OptimizerConfig(lr=1.0), schedule, multipliers={}).finalize_model_grads
    (finalize_model_grads if stock else ours)([module], torch.tensor(num_tokens, dtype=torch.int))
    return module.module.weight.main_grad.clone()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("num_tokens", [7, 0])
def test_as_megatron_does(num_tokens):
    found = gradients(num_tokens, stock=False)
    assert torch.equal(found, gradients(num_tokens, stock=True))
    assert found[2] == pytest.approx(4 / max(num_tokens, 1))
