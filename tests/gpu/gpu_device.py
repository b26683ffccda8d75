"""Where tensors are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

#: type of the device under test
KIND = "cuda"


def tensors_of(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, buffers, and tensors that are plain attributes, which `.to()` does not move."""
    for name, part in module.named_modules():
        held = {**part._parameters, **part._buffers, **vars(part)}
        for key, value in held.items():
            if isinstance(value, torch.Tensor):
                yield f"{name}.{key}".lstrip("."), value


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether products of float32 matrices may be TF32; containers say so by a variable."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def elsewhere(module: torch.nn.Module) -> list[str]:
    """Names of the tensors that are not on the device under test."""
    return [name for name, tensor in tensors_of(module) if tensor.device.type != KIND]
