"""NeMo's LoRA where Transformer Engine is not installed."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace


def transformer_engine_is_missing() -> bool:
    """True where `transformer_engine` is not installed, or hidden."""
    name = "transformer_engine"
    if name in sys.modules:
        return sys.modules[name] is None
    return importlib.util.find_spec(name) is None


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
