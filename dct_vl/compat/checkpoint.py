"""Reading checkpoints without CUDA."""

from typing import Any


def skip_device_fix() -> None:
    """Let NeMo's reader keep tensors where they are.

    `nemo/lightning/io/pl.py` moves CUDA tensors to the current device after reading and asserts
    an initialised CUDA context first; without CUDA there is nothing to move.
    """
    import nemo.lightning.io.pl as pl_io

    def keep(checkpoint: dict[str, Any]) -> dict[str, Any]:
        return checkpoint

    pl_io._fix_tensors_device = keep
