"""The list of compatibility items and their one-time activation."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from dct_vl.compat import (
    checkpoint,
    cuda,
    ddp_stream,
    dynamo,
    lora,
    modelopt,
    narrow,
    numpy2,
    quiet,
    torch_adam,
)
from dct_vl.compat import transformer_engine as te


@dataclass(frozen=True, kw_only=True)
class CompatItem:
    """One deviation from the stock stack: why it exists, when it applies, what it does."""

    name: str
    reason: str
    needed: Callable[[], bool]
    apply: Callable[[], None]


#: In order of application: the environment first, then CUDA, then what imports NeMo.
ITEMS: tuple[CompatItem, ...] = (
    CompatItem(
        name="dynamo",
        reason="Megatron's jit_fuser compiles with g++ on the first CPU step, which takes minutes "
        "for kernels that bring nothing there",
        needed=cuda.cuda_is_missing,
        apply=dynamo.disable,
    ),
    CompatItem(
        name="cuda-redirect",
        reason="Megatron-core and NeMo hard-code the CUDA device, streams and pinned memory",
        needed=cuda.cuda_is_missing,
        apply=cuda.redirect_to_cpu,
    ),
    CompatItem(
        name="hide-cuda-packages",
        reason="a GPU container without a GPU: Megatron takes Transformer Engine's or Apex's CUDA "
        "optimizer wherever they can be imported",
        needed=te.installed_without_cuda,
        apply=te.hide,
    ),
    CompatItem(
        name="numpy-product",
        reason="Megatron's distributed checkpoints call numpy.product, which NumPy 2 dropped",
        needed=numpy2.product_is_missing,
        apply=numpy2.restore_product,
    ),
    CompatItem(
        name="modelopt",
        reason="MegatronStrategy imports ModelOpt's save and restore hooks on every checkpoint "
        "and on every forward step",
        needed=modelopt.is_missing,
        apply=modelopt.install_no_op_hooks,
    ),
    CompatItem(
        name="narrow-imports",
        reason="the __init__ files of nemo.collections.llm and .vlm import every model of the "
        "collection with torchvision, datasets, boto3, nemo_run and more; Qwen2-VL needs none",
        needed=narrow.is_needed,
        apply=narrow.register_packages,
    ),
    CompatItem(
        name="checkpoint-device",
        reason="NeMo's checkpoint reader asserts an initialised CUDA context",
        needed=cuda.cuda_is_missing,
        apply=checkpoint.skip_device_fix,
    ),
    CompatItem(
        name="ddp-stream",
        reason="NeMo has DDP copy the weights on a stream of its own that waits for nothing and is "
        "not waited for: on a busy device some are not the loaded ones",
        needed=cuda.cuda_is_there,
        apply=ddp_stream.build_ddp_on_the_default_stream,
    ),
    CompatItem(
        name="lora-layers",
        reason="NeMo's LoRA asks Transformer Engine for its layer classes, which fails where the "
        "package is absent",
        needed=lora.transformer_engine_is_missing,
        apply=lora.ask_for_no_te_layers,
    ),
    CompatItem(
        name="torch-adam-state",
        reason="Megatron's distributed optimizer cannot load a checkpoint into torch's AdamW, "
        "which it falls back to without Transformer Engine and Apex",
        needed=torch_adam.fused_adam_is_missing,
        apply=torch_adam.carry_step,
    ),
)

_active: dict[str, CompatItem] | None = None


def activate(skip: Collection[str] = ()) -> tuple[str, ...]:
    """Apply every needed item once per process and return the names of the applied ones.

    Args:
        skip: names of items to leave out; the tests use it to prove that each item is needed.

    Raises:
        ValueError: `skip` names an unknown item.
    """
    global _active
    unknown = set(skip) - {item.name for item in ITEMS}
    if unknown:
        raise ValueError(f"unknown items {sorted(unknown)}; known: {[i.name for i in ITEMS]}")
    if _active is None:
        _active = {}
        quiet.quieten()
        for item in ITEMS:
            if item.name not in skip and item.needed():
                item.apply()
                _active[item.name] = item
        quiet.quieten_nemo()
    return tuple(_active)


def active_items() -> tuple[CompatItem, ...]:
    """The items that `activate()` applied in this process."""
    return tuple((_active or {}).values())
