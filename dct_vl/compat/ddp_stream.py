"""One CUDA stream for the weights from their loading to their first use."""

from __future__ import annotations

from typing import Any

import torch


def build_ddp_on_the_default_stream() -> None:
    """Let Megatron's DDP move the weights into its buffers where they were made.

    `MegatronParallel.init_model_parallel` (NeMo 2.7.3) builds DDP under a new stream, for CUDA
    graphs of whole iterations, and lets neither stream wait for the other. With the distributed
    optimizer DDP copies all weights there: out of memory in which they may not have arrived, which
    the default stream is then free to overwrite, into buffers that it reads at once, or that it has
    filled from a checkpoint by then. On a busy device some weights became what lay in memory: the
    first loss was off by a thousandth only, gradients were of the order of 1e28. Nor do gradients
    have to change streams for every parameter this way. CUDA graphs of whole iterations, which
    nothing here makes, would need the stream.
    """
    from nemo.lightning.megatron_parallel import MegatronParallel

    original = MegatronParallel.init_ddp

    def init_ddp(self: Any) -> None:
        with torch.cuda.stream(torch.cuda.default_stream()):
            original(self)

    MegatronParallel.init_ddp = init_ddp
