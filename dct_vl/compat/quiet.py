"""Fewer messages: NeMo and Megatron list every parameter, deprecation and absent extra."""

from __future__ import annotations

import logging
import os
import warnings

#: loggers that report what cannot be helped here; errors still come through
_LOUD = ("", "megatron", "lightning", "lightning.pytorch", "nv_one_logger", "torch.distributed")


def quieten() -> None:
    """Show errors only, in this process; DCT_VL_VERBOSE=1 in the environment shows everything."""
    if os.environ.get("DCT_VL_VERBOSE") == "1":
        return
    warnings.filterwarnings("ignore")
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)


def quieten_nemo() -> None:
    """The same for NeMo's own logger, which exists once NeMo is imported."""
    if os.environ.get("DCT_VL_VERBOSE") == "1":
        return
    from nemo.utils import logging as nemo_logging

    nemo_logging.setLevel(logging.ERROR)
