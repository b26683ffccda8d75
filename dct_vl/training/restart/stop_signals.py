"""SIGTERM and SIGUSR1 end a run after the step that is running, on all ranks after the same one.

`scancel`, `kill -- -GROUP` and schedulers that count processes signal all of a job's processes.
Processes that take part in saving outlive that. Writers do already: they are forked from a trainer,
whose handler does nothing elsewhere than in it. The process that collects what they report is a
fresh one, and would end at once; the save that the signal asks for would then fail. A trainer that
is killed would leave it behind.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch.distributed as dist
import multiprocessing
import threading
from collections.abc import Sequence
from multiprocessing.managers import SyncManager

#: what preemption sends: Kubernetes, cloud machines and `scancel` the first, Slurm's
#: `--signal=USR1@120` the second
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
#: launchers pass a signal on that the process group got too: within this many seconds it is one
SAME_S = 2.0


class StopSignals:
    """Remembers that a stop was asked for; a second SIGTERM ends the process at once."""

    def __init__(self) -> None:
        self._asked = False
        #: when the first SIGTERM came
        self._term_at: float | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._group: dist.ProcessGroup | None = None
        self._owner = os.getpid()

    def install(self) -> None:
        """Take over the signals; again after others have."""
        for number in SIGNALS:
            before = signal.signal(number, self._on_signal)
            self._before.setdefault(number, before)

    def restore(self) -> None:
        """Give the signals back to whom they belonged before the first `install`."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def connect(self) -> None:
        """Make the group in which ranks agree; every rank calls it, with torch.distributed up.

        Of the CPU, so that agreeing does not wait for what the device is doing.
        """
        import torch.distributed as dist

        if dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")

    @property
    def asked(self) -> bool:
        return self._asked

    def agreed(self) -> bool:
        """Has any rank been asked to stop? Every rank calls it and gets the same answer."""
        if self._group is None:
            return self.asked
        import torch
        import torch.distributed as dist

        asked = torch.tensor(int(self.asked))
        dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self._group)
        return bool(asked)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return  # a forked process that has not set its own handlers yet
        if not self._asked:
            self._asked = True
            name = signal.Signals(number).name
            _say(f"{name}: the run stops after this step; a second SIGTERM ends it at once\n")
        if number != signal.SIGTERM:
            return
        now = time.monotonic()
        if self._term_at is None:
            self._term_at = now
        elif now - self._term_at > SAME_S:
            _say("SIGTERM again: ending without saving\n")
            os._exit(128 + number)


def ignore_in_worker() -> None:
    """Let a loader process live on when its whole process group is signalled: the trainer needs it
    for the rest of the step, and ends it afterwards.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _say(text: str) -> None:
    # not `print`: the signal may have come in the middle of one
    os.write(2, text.encode())


def shield_from_signals() -> None:
    """Start the collecting process, which Megatron would start at the first save, deaf to the
    signals that stop a run. It ends with this process.
    """
    # here, because the collecting process imports this module too
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    if filesystem_async._results_queue is None:
        manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
        manager.start(_live_with_parent, (SIGNALS,))
        filesystem_async._results_queue = manager.Queue()


def _live_with_parent(deaf_to: Sequence[signal.Signals]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, deaf_to)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)
