"""Names that NumPy 2 has dropped and Megatron-core 0.15.3 still uses."""

import numpy as np


def product_is_missing() -> bool:
    """True with NumPy 2, which calls it `prod` only."""
    return not hasattr(np, "product")


def restore_product() -> None:
    """`numpy.product`, for Megatron's distributed checkpoints."""
    np.product = np.prod  # type: ignore[attr-defined]
