"""A CUDA-less torch that accepts the CUDA calls which Megatron-core and NeMo hard-code.

Explicit patches of the called functions, not a TorchFunctionMode: a mode costs microseconds on
every operation, is per thread, and a tiny model on the CPU spends its time in just that.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

_CPU = torch.device("cpu")

#: torch factories that the stack calls with device="cuda" or pin_memory=True
_FACTORIES = (
    *("arange", "empty", "empty_like", "eye", "full", "full_like", "ones", "ones_like", "rand"),
    *("randn", "tensor", "as_tensor", "zeros", "zeros_like"),
)


def cuda_is_missing() -> bool:
    """True where torch sees no CUDA device."""
    return not torch.cuda.is_available()


def cuda_is_there() -> bool:
    """True where torch sees a CUDA device."""
    return not cuda_is_missing()


def redirect_to_cpu() -> None:
    """Send what asks for CUDA to the CPU. Call only where `cuda_is_missing()`."""
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    tensor_to = torch.Tensor.to
    tensor_type = torch.Tensor.type

    @functools.wraps(tensor_to)
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        args = tuple(_CPU if _is_cuda(arg) else arg for arg in args)
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        return tensor_to(self, *args, **kwargs)

    @functools.wraps(tensor_type)
    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return tensor_type(self, *args, **kwargs)
        # Megatron's optimizer sorts parameters by the type strings of CUDA tensors
        return str(tensor_type(self)).replace("torch.", "torch.cuda.", 1)

    for name, replacement in (
        ("to", to),
        ("type", type_),
        ("cuda", lambda self, *args, **kwargs: self),
        ("pin_memory", lambda self, *args, **kwargs: self),
    ):
        setattr(torch.Tensor, name, replacement)
    replacements: tuple[tuple[Any, str, Any], ...] = (
        (torch.nn.Module, "cuda", lambda self, device=None: self),
        (torch.cuda, "current_device", lambda: _CPU),
        (torch.cuda, "synchronize", lambda *args, **kwargs: None),
        (torch.cuda, "empty_cache", lambda: None),
        (torch.cuda, "Stream", _Stream),
        (torch.cuda, "stream", _stream_context),
        (torch.cuda, "current_stream", lambda *args, **kwargs: _Stream()),
        (torch.cuda, "default_stream", lambda *args, **kwargs: _Stream()),
        (torch.cuda, "get_rng_state", lambda *args, **kwargs: torch.get_rng_state()),
        (torch.cuda, "set_rng_state", lambda state, *args, **kwargs: torch.set_rng_state(state)),
        (torch.cuda, "manual_seed", torch.manual_seed),
    )
    for owner, name, stand_in in replacements:
        setattr(owner, name, stand_in)


def _is_cuda(device: Any) -> bool:
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, torch.device) and device.type == "cuda"


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def wrapped(*args: Any, **kwargs: Any) -> torch.Tensor:
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return wrapped


class _Stream:
    """A stream on which everything has always happened already."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, event: Any = None) -> Any:
        return event


@contextlib.contextmanager
def _stream_context(stream: Any) -> Iterator[Any]:
    yield stream


def disable_dynamo() -> None:
    """Turn `torch.compile` into a no-op for this process and its children.

    An explicit TORCHDYNAMO_DISABLE in the environment wins.
    """
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
