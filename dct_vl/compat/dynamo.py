"""TorchDynamo on the CPU: off, unless the user says otherwise."""

import os


def disable() -> None:
    """Turn `torch.compile` into a no-op for this process and its children.

    An explicit TORCHDYNAMO_DISABLE in the environment wins.
    """
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
