"""Names the rank that the others wait for.

A collective that a rank does not join blocks all of them, and torch's timeout kills the process
that noticed, which is seldom the one at fault. So every rank writes its progress to RUN/ranks, and
after a long stall one rank of each machine reads what all have written.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

FOLDER_NAME = "ranks"
#: bytes of a rank's file, always written whole
_SIZE = 160
#: order of what happens in a step; a rank that is less far than others is the one waited for
PHASES = ("reads data", "computes", "updates", "finishes the step", "saves", "validates")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank was when it last wrote."""

    rank: int
    step: int
    phase: str
    host: str
    pid: int
    #: Unix time
    since: float

    @property
    def progress(self) -> tuple[int, int]:
        return self.step, PHASES.index(self.phase)


def clear_places(run_dir: Path) -> None:
    """Forget where the ranks of an earlier start were: one that never gets to speak would seem to
    be there still. Before any rank of this one speaks.
    """
    shutil.rmtree(run_dir / FOLDER_NAME, ignore_errors=True)


class RankBoard:
    """The file in which a rank writes where it is; a note costs some microseconds."""

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._who = f"{os.uname().nodename} {os.getpid()}"
        self._file = os.open(folder / f"{rank:05d}", os.O_WRONLY | os.O_CREAT, 0o644)
        self.noted_at = time.monotonic()

    def note(self, step: int, phase: str) -> None:
        """Say that `step` has come to `phase` of `PHASES`."""
        self.noted_at = time.monotonic()
        line = f"{time.time():.1f} {self._who} {step} {phase}".encode()[: _SIZE - 1]
        os.pwrite(self._file, line.ljust(_SIZE - 1) + b"\n", 0)

    def close(self) -> None:
        os.close(self._file)


def read_places(folder: Path, world_size: int) -> list[Place]:
    """Where the ranks of a run are that have written so far."""
    places = []
    for rank in range(world_size):
        path = folder / f"{rank:05d}"
        words = path.read_text().split(maxsplit=4) if path.is_file() else []
        if len(words) == 5:
            since, host, pid, step, phase = words
            places.append(
                Place(
                    rank=rank,
                    step=int(step),
                    phase=phase.strip(),
                    host=host,
                    pid=int(pid),
                    since=float(since),
                )
            )
    return places


def describe_stall(places: Sequence[Place], world_size: int, now: float) -> str:
    """Which ranks the others wait for, and where all of them are."""
    known = {place.rank for place in places}
    lines = []
    silent = [str(rank) for rank in range(world_size) if rank not in known]
    if silent:
        lines.append(f"ranks that have not said anything yet: {', '.join(silent)}")
    if places:
        least = min(place.progress for place in places)
        behind = [place for place in places if place.progress == least]
        ahead = len(places) - len(behind)
        head = "all ranks are at the same place:" if not ahead else f"{ahead} others wait for:"
        lines.append(head)
        lines += [
            f"  rank {p.rank} ({p.host}, pid {p.pid}): step {p.step}, {p.phase} "
            f"for {now - p.since:.0f} s"
            for p in behind[:16]
        ]
        if len(behind) > 16:
            lines.append(f"  and {len(behind) - 16} more")
    return "\n".join(lines)


def speakers(places: Sequence[Place]) -> set[int]:
    """The first rank of each machine, of those that wait, or of all where none is behind."""
    least = min((place.progress for place in places), default=None)
    waiting = [place for place in places if place.progress != least] or places
    first: dict[str, int] = {}
    for place in waiting:
        first.setdefault(place.host, place.rank)
    return set(first.values())


class RankWatch(pl.Callback):
    """Notes this rank's place, and reports a stall from a thread of its own.

    Args:
        after_s: seconds without a note of this rank after which all are looked at, again and again;
            0 never looks.
    """

    def __init__(self, run_dir: Path, *, rank: int, world_size: int, after_s: float) -> None:
        self.folder = run_dir / FOLDER_NAME
        self.world_size = world_size
        self.after_s = after_s
        self.rank = rank
        self.board: RankBoard | None = None
        # made when it starts: NeMo's Trainer keeps a deep copy of its callbacks
        self._over: threading.Event | None = None

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.board = RankBoard(self.folder, self.rank)
        module.note_phase = lambda phase: self._note(trainer, phase)
        self._note(trainer, "reads data")
        self._over = threading.Event()
        if self.after_s:
            threading.Thread(
                target=self._watch, args=(self._over,), name="rank watch", daemon=True
            ).start()

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._note(trainer, "reads data")

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
        self._note(trainer, "updates")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._note(trainer, "finishes the step", -1)

    def on_save_checkpoint(self, trainer: pl.Trainer, *_: Any) -> None:
        self._note(trainer, "saves", -1)

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._note(trainer, "validates", -1)

    def teardown(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        if self._over is not None:
            self._over.set()
        if self.board is not None:
            self.board.close()
            self.board = None

    def report(self) -> str | None:
        """Where all ranks are now; None where another rank of this machine says it."""
        places = read_places(self.folder, self.world_size)
        if self.rank not in speakers(places):
            return None
        return describe_stall(places, self.world_size, time.time())

    def _note(self, trainer: pl.Trainer, phase: str, offset: int = 0) -> None:
        if self.board is not None:
            self.board.note(trainer.global_step + 1 + offset, phase)

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(min(self.after_s, 10.0)):
            board = self.board
            if board is None or time.monotonic() - board.noted_at < self.after_s:
                continue
            board.noted_at = time.monotonic()
            if text := self.report():
                print(
                    f"\nwarning: rank {self.rank} has not moved for {self.after_s:g} s; {text}",
                    file=sys.stderr,
                    flush=True,
                )
