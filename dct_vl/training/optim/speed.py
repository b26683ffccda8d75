"""The speed switches of a run, and what they do to the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch

from dct_vl.errors import ConfigError
from dct_vl.model.attention import have_cudnn_attention, have_varlen_attention, prefer_cudnn
from dct_vl.model.fused.pieces import allow_compiling
from dct_vl.model.layer_specs import LayerSpecName
from dct_vl.runs.config.schema import SpeedConfig
from dct_vl.training.optim.adam import PendingScale, copy_at_once, remember_lists


@dataclass(frozen=True, kw_only=True)
class Speed:
    """`SpeedConfig` with every switch decided."""

    fused_layers: bool
    compile: bool
    answer_loss: bool
    fused_optimizer: bool
    cudnn_attention: bool
    #: asked for, so that torch's kernel is not to step in
    cudnn_required: bool
    recompute: bool


def resolve_speed(config: SpeedConfig) -> Speed:
    """Decide what was left open: on where torch sees a CUDA device.

    Raises:
        ConfigError: recomputation without a CUDA device, or cuDNN's attention where it is not.
    """
    names = ("fused_layers", "compile", "answer_loss", "fused_optimizer")
    wanted = {name: getattr(config, name) for name in names}
    on_cuda = torch.cuda.is_available()
    if config.recompute and not on_cuda:
        raise ConfigError("speed.recompute=true: Megatron's recomputation needs CUDA; leave it out")
    decided = {name: on_cuda if value is None else bool(value) for name, value in wanted.items()}
    cudnn = config.cudnn_attention
    if cudnn and not have_cudnn_attention():
        raise ConfigError(
            "speed.cudnn_attention=true: needs the package nvidia-cudnn-frontend, 1.13 or later, "
            "and a GPU of compute capability 9.0 or later; leave it out to use what is there"
        )
    # later devices may have it as well, and nobody has tried
    tried = on_cuda and torch.cuda.get_device_capability()[0] == 9
    decided["cudnn_attention"] = have_cudnn_attention() and tried if cudnn is None else cudnn
    return Speed(**decided, cudnn_required=bool(cudnn), recompute=config.recompute)


def describe(speed: Speed, layer_spec: LayerSpecName) -> str:
    """The choice of layers and attention in one line, and the switches that are on."""
    if layer_spec != "local":
        attention = "Transformer Engine's attention"
    elif speed.cudnn_attention:
        attention = "cuDNN's attention in packs"
    elif torch.cuda.is_available() and have_varlen_attention():
        attention = "torch's flash attention in packs"
    else:
        attention = "torch's SDPA"
    names = [name for name, value in vars(speed).items() if value and name != "cudnn_required"]
    on = ", ".join(names) or "none"
    return f"layer_spec={layer_spec}, {attention}; speed switches that are on: {on}"


class SpeedUp(pl.Callback):
    """Sets the switches that are not the model's: compilation, AdamW's kernel, gradient norm.

    Args:
        speed: the switches.
        layer_spec: of the model, which is printed beside them at the start.
    """

    def __init__(self, speed: Speed, layer_spec: LayerSpecName = "local") -> None:
        self.speed = speed
        self.layer_spec = layer_spec
        #: factors that gradients wait for, where AdamW's kernel applies them
        self.pending: PendingScale | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """After the optimizer was made, and filled where the run resumes from a checkpoint."""
        if trainer.is_global_zero:
            print(describe(self.speed, self.layer_spec), flush=True)
        allow_compiling(self.speed.compile)
        prefer_cudnn(self.speed.cudnn_attention, required=self.speed.cudnn_required)
        if self.speed.fused_optimizer:
            for optimizer in trainer.optimizers:
                for part in optimizer_parts(optimizer):
                    copy_at_once(part)
        put_stand_ins_back()
        inner = [i for optimizer in trainer.optimizers for i in torch_optimizers(optimizer)]
        if not inner or any(type(optimizer) is not torch.optim.AdamW for optimizer in inner):
            return
        if not self.speed.fused_optimizer:
            for adam in inner:
                use_torchs_choice(adam)
            return
        for adam in inner:
            use_one_kernel(adam)
            remember_lists(adam)
        pending = PendingScale()
        if use_instead_of_stand_ins(pending.l2_norm, pending.clip_gradients):
            self.pending = pending
            pending.attach(inner)
            for chunk in trainer.strategy.megatron_parallel:  # type: ignore[attr-defined]
                innermost_ddp(chunk).scale_gradients = pending.scale_gradients


def optimizer_parts(optimizer: Any) -> list[Any]:
    """Megatron's optimizers inside NeMo's wrapper and Megatron's chain of them."""
    mcore = getattr(optimizer, "mcore_optimizer", optimizer)
    parts: list[Any] = getattr(mcore, "chained_optimizers", [mcore])
    return parts


def torch_optimizers(optimizer: Any) -> Iterator[Any]:
    """The innermost optimizers of NeMo's wrapper around Megatron's that have parameters.

    A pipeline stage that is frozen has one as well, with the groups of the other stages, all empty.
    """
    for part in optimizer_parts(optimizer):
        inner = getattr(part, "optimizer", None)
        if inner is not None and any(group["params"] for group in inner.param_groups):
            yield inner


def use_one_kernel(adam: torch.optim.AdamW) -> None:
    """Let AdamW update many tensors in one kernel, also after a checkpoint has set its options.

    Megatron makes it with torch's defaults, which are several kernels over all tensors, each
    through memory once. The fused kernel wants the step counts where the parameters are.
    """

    def prepare(adam: torch.optim.Optimizer, *_: Any) -> None:
        for group in adam.param_groups:
            group["fused"], group["foreach"] = True, False
            first = adam.state.get(next(iter(group["params"]), None), {})  # type: ignore[arg-type]
            if first and first["step"].device == group["params"][0].device:
                continue  # it has been done, and there are many
            for parameter in group["params"]:
                state = adam.state.get(parameter)
                if state and "step" in state and state["step"].device != parameter.device:
                    state["step"] = state["step"].to(parameter.device, torch.float32)

    prepare(adam)
    adam.register_step_pre_hook(prepare)


def use_torchs_choice(adam: torch.optim.AdamW) -> None:
    """Forget the options that a checkpoint of a run with one kernel has brought, whose step counts
    need not be where that kernel wants them.
    """
    for group in adam.param_groups:
        group["fused"] = group["foreach"] = None


def use_instead_of_stand_ins(l2_norm: Callable[..., Any], clip: Callable[..., None]) -> bool:
    """Replace what Megatron does with its stand-ins for the kernels of Transformer Engine and Apex,
    if they are in use.

    They wait for the device once a tensor, and copy every gradient. Returns whether they were in
    use.
    """
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads, optimizer

    put_stand_ins_back()
    if getattr(clip_grads, "l2_norm_impl", None) is not utils.local_multi_tensor_l2_norm:
        return False
    clip_grads.l2_norm_impl = l2_norm
    optimizer.clip_grad_by_total_norm_fp32 = clip
    return True


def put_stand_ins_back() -> None:
    """Undo `use_instead_of_stand_ins`, of an earlier run of this process: its factors wait for an
    optimizer that is gone, and a run that does not replace them would clip nothing.
    """
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads, optimizer

    in_use = getattr(clip_grads, "l2_norm_impl", None)
    if isinstance(getattr(in_use, "__self__", None), PendingScale):
        clip_grads.l2_norm_impl = utils.local_multi_tensor_l2_norm
        optimizer.clip_grad_by_total_norm_fp32 = clip_grads.clip_grad_by_total_norm_fp32


def innermost_ddp(module: Any) -> Any:
    """Megatron's DistributedDataParallel below NeMo's wrappers."""
    from megatron.core.distributed import DistributedDataParallel

    while not isinstance(module, DistributedDataParallel):
        module = module.module
    return module
