"""When the steps of train_step_nemo.py ended, and which kernels ran in them."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch

#: steps of a profile
PROFILED = 2


class StepTimes(pl.Callback):
    """When each block of steps ended; the device is waited for only there.

    Args:
        warmup: steps before the first block.
        block: steps of a block.
        profile_at: the step that a profile of `PROFILED` steps starts after; None for none.
    """

    def __init__(self, *, warmup: int, block: int, profile_at: int | None) -> None:
        self.warmup = warmup
        self.block = block
        self.profile_at = profile_at
        self.step = 0
        #: seconds of all steps after the warm-up
        self.data_wait = 0.0
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.profiler: Any = None
        self.profile: dict[str, Any] | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        """Note the time at the end of the warm-up and of every block.

        Comes before the callbacks of a run, one of which sets the step's data wait to 0.
        """
        self.step += 1
        if self.step > self.warmup:
            self.data_wait += getattr(module, "data_wait", 0.0)
        if self.profile_at is not None:
            self._profile()
        elif self.step >= self.warmup and (self.step - self.warmup) % self.block == 0:
            self._wait()
            self.losses.append(float(trainer.callback_metrics["reduced_train_loss"]))

    def _wait(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def _profile(self) -> None:
        if self.step == self.profile_at:
            self._wait()
            # what the host does would be written down as well, and slow it down
            kinds = torch.profiler.ProfilerActivity
            activities = [kinds.CUDA if torch.cuda.is_available() else kinds.CPU]
            self.profiler = torch.profiler.profile(activities=activities)
            self.profiler.__enter__()
            self.ends[-1] = time.perf_counter()
        elif self.step == self.profile_at + PROFILED:
            self._wait()
            self.profiler.__exit__(None, None, None)
            self.profile = summarise(self.profiler, self.ends[-1] - self.ends[-2])


def summarise(profiler: Any, wall: float) -> dict[str, Any]:
    """Share of the wall time in which a kernel ran, and the longest kernels of a step.

    Without a device the operators take the kernels' place.
    """
    events = list(profiler.events())
    kernels = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    busy, reached = 0.0, 0.0
    for start, end in sorted((e.time_range.start, e.time_range.end) for e in kernels or events):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    totals: dict[str, list[float]] = {}
    for event in kernels or events:
        entry = totals.setdefault(event.name, [0.0, 0.0])
        entry[0] += 1
        entry[1] += event.time_range.elapsed_us() if kernels else event.self_cpu_time_total
    longest = sorted(totals.items(), key=lambda item: -item[1][1])[:32]
    return {
        "gaps": find_gaps(kernels or events),
        "busy_share": busy / 1e6 / wall,
        "wall": wall / PROFILED,
        "kernels": [[name, n / PROFILED, us / 1e6 / PROFILED] for name, (n, us) in longest],
    }


def find_gaps(events: list[Any]) -> list[list[Any]]:
    """The longest times of a step in which no kernel ran: microseconds, the kernel before, the one
    behind.
    """
    ordered = sorted(events, key=lambda e: e.time_range.start)
    found: list[list[Any]] = []
    reached, before = ordered[0].time_range.end, ordered[0].name
    for event in ordered[1:]:
        if event.time_range.start > reached:
            found.append([event.time_range.start - reached, before, event.name])
        if event.time_range.end > reached:
            reached, before = event.time_range.end, event.name
    return sorted(found, key=lambda gap: -gap[0])[:16]
