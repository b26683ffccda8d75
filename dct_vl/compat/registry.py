"""The list of compatibility items, their one-time activation, and fewer messages."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass

from dct_vl.compat import cuda, megatron, nemo


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
        apply=cuda.disable_dynamo,
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
        needed=megatron.installed_without_cuda,
        apply=megatron.hide_cuda_packages,
    ),
    CompatItem(
        name="numpy-product",
        reason="Megatron's distributed checkpoints call numpy.product, which NumPy 2 dropped",
        needed=megatron.product_is_missing,
        apply=megatron.restore_product,
    ),
    CompatItem(
        name="modelopt",
        reason="MegatronStrategy imports ModelOpt's save and restore hooks on every checkpoint "
        "and on every forward step",
        needed=nemo.modelopt_is_missing,
        apply=nemo.install_no_op_hooks,
    ),
    CompatItem(
        name="narrow-imports",
        reason="the __init__ files of nemo.collections.llm and .vlm import every model of the "
        "collection with torchvision, datasets, boto3, nemo_run and more; Qwen2-VL needs none",
        needed=nemo.full_collection_is_missing,
        apply=nemo.register_packages,
    ),
    CompatItem(
        name="checkpoint-device",
        reason="NeMo's checkpoint reader asserts an initialised CUDA context",
        needed=cuda.cuda_is_missing,
        apply=nemo.skip_device_fix,
    ),
    CompatItem(
        name="ddp-stream",
        reason="NeMo has DDP copy the weights on a stream of its own that waits for nothing and is "
        "not waited for: on a busy device some are not the loaded ones",
        needed=cuda.cuda_is_there,
        apply=nemo.build_ddp_on_the_default_stream,
    ),
    CompatItem(
        name="lora-layers",
        reason="NeMo's LoRA asks Transformer Engine for its layer classes, which fails where the "
        "package is absent",
        needed=nemo.transformer_engine_is_missing,
        apply=nemo.ask_for_no_te_layers,
    ),
    CompatItem(
        name="torch-adam-state",
        reason="Megatron's distributed optimizer cannot load a checkpoint into torch's AdamW, "
        "which it falls back to without Transformer Engine and Apex",
        needed=megatron.fused_adam_is_missing,
        apply=megatron.carry_step,
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
        quieten()
        for item in ITEMS:
            if item.name not in skip and item.needed():
                item.apply()
                _active[item.name] = item
        quieten_nemo()
    return tuple(_active)


def active_items() -> tuple[CompatItem, ...]:
    """The items that `activate()` applied in this process."""
    return tuple((_active or {}).values())


#: loggers that report what cannot be helped here; errors still come through
_LOUD = ("", "megatron", "lightning", "lightning.pytorch", "nv_one_logger", "torch.distributed")


def quieten() -> None:
    """Show errors only, in this process; DCT_VL_VERBOSE=1 in the environment shows everything."""
    if os.environ.get("DCT_VL_VERBOSE") == "1":
        return
    warnings.filterwarnings("ignore")
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)


def quieten_nemo() -> None:
    """The same for NeMo's own logger, which exists once NeMo is imported."""
    if os.environ.get("DCT_VL_VERBOSE") == "1":
        return
    from nemo.utils import logging as nemo_logging

    nemo_logging.setLevel(logging.ERROR)
