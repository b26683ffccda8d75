"""The speed switches of a run, and what they do to the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch

from training.config.overrides import ConfigError
from training.config.schema import SpeedConfig
from training.model.fused.compiling import allow_compiling


@dataclass(frozen=True, kw_only=True)
class Speed:
    """`SpeedConfig` with every switch decided."""

    fused_layers: bool
    compile: bool
    answer_loss: bool
    fused_optimizer: bool
    recompute: bool


def resolve_speed(config: SpeedConfig) -> Speed:
    """Decide what was left open: on where torch sees a CUDA device.

    Raises:
        ConfigError: recomputation without a CUDA device.
    """
    names = ("fused_layers", "compile", "answer_loss", "fused_optimizer")
    wanted = {name: getattr(config, name) for name in names}
    on_cuda = torch.cuda.is_available()
    if config.recompute and not on_cuda:
        raise ConfigError("speed.recompute=true: Megatron's recomputation needs CUDA; leave it out")
    decided = {name: on_cuda if value is None else bool(value) for name, value in wanted.items()}
    return Speed(**decided, recompute=config.recompute)


class SpeedUp(pl.Callback):
    """Sets the switches that are not the model's: compilation, AdamW's kernel, gradient norm."""

    def __init__(self, speed: Speed) -> None:
        self.speed = speed

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """After the optimizer was made, and filled where the run goes on from a checkpoint."""
        allow_compiling(self.speed.compile)
        if not self.speed.fused_optimizer:
            return
        for optimizer in trainer.optimizers:
            for inner in torch_optimizers(optimizer):
                if isinstance(inner, torch.optim.AdamW):
                    use_one_kernel(inner)
        use_foreach_norm()


def torch_optimizers(optimizer: Any) -> Iterator[Any]:
    """The innermost optimizers of NeMo's wrapper around Megatron's."""
    mcore = getattr(optimizer, "mcore_optimizer", optimizer)
    for part in getattr(mcore, "chained_optimizers", [mcore]):
        if getattr(part, "optimizer", None) is not None:
            yield part.optimizer


def use_one_kernel(adam: torch.optim.AdamW) -> None:
    """Let AdamW update many tensors in one kernel, also after a checkpoint has set its options.

    Megatron makes it with torch's defaults, which are several kernels over all tensors, each
    through memory once. The fused kernel wants the step counts where the parameters are.
    """

    def prepare(adam: torch.optim.Optimizer, *_: Any) -> None:
        for group in adam.param_groups:
            group["fused"], group["foreach"] = True, False
            for parameter in group["params"]:
                state = adam.state.get(parameter)
                if state and "step" in state and state["step"].device != parameter.device:
                    state["step"] = state["step"].to(parameter.device, torch.float32)

    prepare(adam)
    adam.register_step_pre_hook(prepare)


def foreach_l2_norm(
    chunk_size: int, noop_flag: Any, tensor_lists: list[list[torch.Tensor]], *_: Any
) -> tuple[torch.Tensor, None]:
    """What `megatron.core.utils.local_multi_tensor_l2_norm` gives, without waiting for the device
    once a tensor: a (1,) tensor, and None.
    """
    norms = torch._foreach_norm(tensor_lists[0])
    return torch.linalg.vector_norm(torch.stack(norms)).view(1), None


def foreach_scale(
    chunk_size: int, noop_flag: Any, tensor_lists: list[list[torch.Tensor]], scale: float
) -> None:
    """What `megatron.core.utils.local_multi_tensor_scale` does, without a copy of each tensor."""
    sources, targets = tensor_lists
    if any(a is not b for a, b in zip(sources, targets, strict=True)):
        torch._foreach_copy_(targets, sources)
    torch._foreach_mul_(targets, scale)


def use_foreach_norm() -> None:
    """Replace Megatron's stand-ins for the kernels of Transformer Engine and Apex, if in use."""
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads

    if getattr(clip_grads, "l2_norm_impl", None) is utils.local_multi_tensor_l2_norm:
        clip_grads.l2_norm_impl = foreach_l2_norm
        clip_grads.multi_tensor_scale_impl = foreach_scale
