"""Is NVIDIA Transformer Engine usable here, and out of the way where it is not?"""

import functools
import importlib.util
import sys

import torch

_NEED_CUDA = ("transformer_engine", "apex")


def installed_without_cuda() -> bool:
    """True where Transformer Engine or Apex is installed and torch sees no CUDA device."""
    if torch.cuda.is_available():
        return False
    return any(name not in sys.modules and _is_installed(name) for name in _NEED_CUDA)


def hide() -> None:
    """Make them unimportable in this process: Megatron takes their optimizer wherever they are."""
    for name in _NEED_CUDA:
        sys.modules[name] = None  # type: ignore[assignment]


def _is_installed(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    return importlib.util.find_spec(name) is not None


@functools.cache
def have_transformer_engine() -> bool:
    """True where `transformer_engine.pytorch` imports and a CUDA device is there to run it."""
    if not torch.cuda.is_available() or not _is_installed("transformer_engine"):
        return False
    try:
        import transformer_engine.pytorch  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True
