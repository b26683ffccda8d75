"""What makes NeMo 2.7.3 and Megatron-core 0.15.3 run where parts of their usual world are absent.

This package is the only place of the project that knows of a missing CUDA, Transformer Engine,
ModelOpt, torchvision and the like. Call `activate()` before the first import of `nemo` or
`megatron`; every item is applied only where it is needed, so that on a complete GPU container
nothing is changed but one fault of NeMo's (item `ddp-stream`). `ITEMS` lists each item with its
reason.

Beside it, replaced.yaml lists every framework member that any module of this project replaces,
overrides or sets, with its reason and the version that it was checked against.
"""

from dct_vl.compat.megatron import have_transformer_engine
from dct_vl.compat.registry import ITEMS, CompatItem, activate, active_items

__all__ = ["ITEMS", "CompatItem", "activate", "active_items", "have_transformer_engine"]
