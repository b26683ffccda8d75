"""Processes that take part in saving live on when a whole process group is signalled.

`scancel`, `kill -- -GROUP` and schedulers that count processes signal all of a job's processes.
Writers ignore that already: they are forked from a trainer, whose handler does nothing elsewhere
than in it. The process that collects what they report is a fresh one, and would end at once; the
save that the signal asks for would then fail. A trainer that is killed would leave it behind.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.managers import SyncManager


def shield_from_signals() -> None:
    """Start the collecting process, which Megatron would start at the first save, deaf to the
    signals that stop a run. It ends with this process.
    """
    # here, because the collecting process imports this module too
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    from dct_vl.training.restart.stop_signals import SIGNALS

    if filesystem_async._results_queue is None:
        manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
        manager.start(_live_with_parent, (SIGNALS,))
        filesystem_async._results_queue = manager.Queue()


def _live_with_parent(deaf_to: Sequence[signal.Signals]) -> None:
    """First thing in the collecting process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, deaf_to)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)
