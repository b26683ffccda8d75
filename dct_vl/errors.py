"""Errors whose message says why and what to do, so that no stack is shown."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting that cannot be used; the message says what to write instead."""


class RunError(RuntimeError):
    """Training cannot go on."""


class SaveError(RunError):
    """A checkpoint could not be written, which the other ranks may not know of."""


class StopRequested(Exception):
    """A signal asked the run to stop, and every rank has agreed on the step."""

    def __init__(self, step: int, *, saved: bool) -> None:
        super().__init__(f"stopped by a signal after step {step}")
        self.step = step
        self.saved = saved
