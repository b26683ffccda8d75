"""How a run ends before its last step."""

from __future__ import annotations


class RunError(RuntimeError):
    """Training cannot go on; the message says why and what to do, so that no stack is shown."""


class SaveError(RunError):
    """A checkpoint could not be written, which the other ranks may not know of."""


class StopRequested(Exception):
    """A signal asked the run to stop, and every rank has agreed on the step."""

    def __init__(self, step: int, *, saved: bool) -> None:
        super().__init__(f"stopped by a signal after step {step}")
        self.step = step
        self.saved = saved
