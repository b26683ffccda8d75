"""Training checkpoints as Hugging Face folders."""

from dct_vl.compat import activate

# before any module of this package imports Megatron or NeMo
activate()
