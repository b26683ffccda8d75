"""Is NVIDIA Transformer Engine usable here?"""

import functools
import importlib.util

import torch


@functools.cache
def have_transformer_engine() -> bool:
    """True where `transformer_engine.pytorch` imports and a CUDA device is there to run it."""
    if not torch.cuda.is_available() or importlib.util.find_spec("transformer_engine") is None:
        return False
    try:
        import transformer_engine.pytorch  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True
