"""SIGTERM and SIGUSR1 end a run after the step that is running, on all ranks after the same one."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

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
        if dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")

    @property
    def asked(self) -> bool:
        """Has this process been asked to stop?"""
        return self._asked

    def agreed(self) -> bool:
        """Has any rank been asked to stop? Every rank calls it and gets the same answer."""
        if self._group is None:
            return self.asked
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
