"""NeMo 2.7.3 where parts of its usual world are absent, and without one fault of its own.

Without ModelOpt there is no quantised or distilled state to save or restore, so that its hooks in
NeMo's strategy can do nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from dct_vl.compat.megatron import is_installed

#: third-party packages that the full collections import; all of them must be there to do without
#: the narrow imports
FULL_COLLECTION_NEEDS = (
    *("nemo_run", "datasets", "modelopt"),
    *("torchvision", "boto3", "qwen_vl_utils"),
)

#: packages whose __init__ is skipped; their sub-modules import as usual
_NARROWED = (
    "nemo.collections.llm",
    "nemo.collections.llm.gpt",
    "nemo.collections.llm.gpt.model",
    "nemo.collections.vlm",
    "nemo.collections.vlm.neva",
    "nemo.collections.vlm.neva.model",
    "nemo.collections.vlm.neva.data",
    "nemo.collections.vlm.qwen2vl",
    "nemo.collections.vlm.qwen2vl.data",
    "nemo.collections.vlm.qwen2vl.model",
)


def full_collection_is_missing() -> bool:
    """True where any package of `FULL_COLLECTION_NEEDS` is not installed."""
    return any(importlib.util.find_spec(name) is None for name in FULL_COLLECTION_NEEDS)


def register_packages() -> None:
    """Register the narrowed packages without running their __init__."""
    for name in _NARROWED:
        if name not in sys.modules:
            _register(name)


def _register(name: str) -> None:
    parent_name, _, child = name.rpartition(".")
    parent = importlib.import_module(parent_name)
    path = [str(Path(entry) / child) for entry in parent.__path__]
    package = types.ModuleType(name)
    package.__path__ = path
    package.__package__ = name
    package.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    package.__spec__.submodule_search_locations = path
    sys.modules[name] = package
    setattr(parent, child, package)


def modelopt_is_missing() -> bool:
    """True where `modelopt` is not installed."""
    return importlib.util.find_spec("modelopt") is None


def install_no_op_hooks() -> None:
    """Register modules with the functions that MegatronStrategy and MegatronParallel import."""
    package, set_spec = "nemo.collections.llm.modelopt", _nothing
    _module(package, set_modelopt_spec_if_exists_in_ckpt=set_spec)
    _module(
        f"{package}.model_utils",
        save_modelopt_state=_nothing,
        restore_modelopt_state=lambda *args, **kwargs: contextlib.nullcontext(),
        set_modelopt_spec_if_exists_in_ckpt=set_spec,
    )
    _module(f"{package}.distill")
    _module(f"{package}.distill.utils", get_tensor_shapes_adjust_fn_for_distillation=_nothing)


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _module(name: str, **attributes: Any) -> None:
    module = types.ModuleType(name)
    module.__path__ = []
    module.__dict__.update(attributes)
    sys.modules[name] = module


def transformer_engine_is_missing() -> bool:
    """True where `transformer_engine` is not installed, or hidden."""
    return not is_installed("transformer_engine")


def ask_for_no_te_layers() -> None:
    """Let `LoRA.transform` of NeMo 2.7.3 look at Megatron's own layers.

    `peft/lora.py` reads `te.Linear` of every target, and its stand-in for the absent package
    raises on any attribute. `peft/utils.py` takes Transformer Engine for present when Megatron's
    wrapper module can be imported, whose classes are None without it.
    """
    import nemo.collections.llm.peft.lora as nemo_lora
    import nemo.collections.llm.peft.utils as nemo_utils

    nemo_lora.te = SimpleNamespace(Linear=None)
    nemo_utils.HAVE_TE = False


def skip_device_fix() -> None:
    """Let NeMo's reader keep tensors where they are.

    `nemo/lightning/io/pl.py` moves CUDA tensors to the current device after reading and asserts
    an initialised CUDA context first; without CUDA there is nothing to move.
    """
    import nemo.lightning.io.pl as pl_io

    def keep(checkpoint: dict[str, Any]) -> dict[str, Any]:
        return checkpoint

    pl_io._fix_tensors_device = keep


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
