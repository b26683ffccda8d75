"""Show the progress of a run: a live line on a terminal, otherwise a line every ten seconds."""

import threading
from collections import Counter
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from data_prep.shard_task import Tick

_PLAIN_EVERY_S = 10.0


class Reporter:
    """Reports what a run does. Ticks may come from any thread."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """One line that stays."""
        self.console.print(text, markup=False)

    def planning(self) -> "PlanningMeter":
        return PlanningMeter(self.console)

    def converting(self, source_bytes: int) -> "ConversionMeter":
        return ConversionMeter(self.console, source_bytes)


class PlanningMeter:
    """Entries read so far; their total is not known beforehand."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("Reading entries") if console.is_terminal else None
        self._count = 0
        self._start = self._shown = monotonic()

    def __enter__(self) -> "PlanningMeter":
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def advance(self) -> None:
        self._count += 1
        if self._count % 1000:
            return
        now = monotonic()
        line = f"{self._count:,} entries read, {self._count / (now - self._start):,.0f}/s"
        if self._status:
            self._status.update(line)
        elif now - self._shown > _PLAIN_EVERY_S:
            self._shown = now
            self._console.print(line, markup=False)


class ConversionMeter:
    """Images and bytes per second, time to go, rejects by reason."""

    def __init__(self, console: Console, source_bytes: int) -> None:
        self._console = console
        self._total = source_bytes
        self._images = self._videos = self._bytes = 0
        self._rejected: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._start = self._shown = monotonic()
        self._live = _live_progress(console) if console.is_terminal else None
        self._bar = self._live.add_task("", total=source_bytes, rates="") if self._live else None

    def __enter__(self) -> "ConversionMeter":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()
        elif self._images or self._videos:
            self._console.print(self._line(), markup=False)

    def tick(self, tick: Tick) -> None:
        with self._lock:
            self._images += tick.images
            self._videos += tick.videos
            self._bytes += tick.source_bytes
            self._rejected.update(tick.rejected)
            if self._live and self._bar is not None:
                self._live.update(self._bar, completed=self._bytes, rates=self._rates())
            elif monotonic() - self._shown > _PLAIN_EVERY_S:
                self._shown = monotonic()
                self._console.print(self._line(), markup=False)

    def _rates(self) -> str:
        seconds = max(monotonic() - self._start, 1e-3)
        text = (
            f"{self._images:,} images, {self._images / seconds:,.0f} images/s, "
            f"{self._bytes / seconds / 1e6:,.1f} MB/s"
        )
        if self._videos:
            text += f", {self._videos:,} videos"
        if self._rejected:
            reasons = ", ".join(f"{name} {n:,}" for name, n in self._rejected.most_common())
            text += f", rejected: {reasons}"
        return text

    def _line(self) -> str:
        done = self._bytes / self._total if self._total else 1.0
        to_go = (monotonic() - self._start) * (1 / done - 1) if done else 0.0
        return f"{done:4.0%} {self._rates()}, {to_go:,.0f} s to go"


def _live_progress(console: Console) -> Progress:
    return Progress(
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[rates]}", markup=False),
        TimeRemainingColumn(),
        console=console,
    )
