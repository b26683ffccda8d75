"""Runs torchrun as a child: signals reach the ranks as requests, and their errors are said once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from dct_vl.training.restart.stop_signals import SAME_S, SIGNALS

#: seconds between requests: a rank that is still importing ignores them
_REPEAT_S = 2.0


def supervise(command: Sequence[str], environ: dict[str, str]) -> int:
    """Run a torchrun command and return its exit status.

    torchrun answers SIGTERM by ending its ranks, half a minute later by force, and with a failure;
    and SIGUSR1 ends torchrun itself. Here both reach the ranks as SIGUSR1, which they answer by
    saving and ending well, also where the whole process group is signalled. A second SIGTERM ends
    all of it at once; one that comes along with the first is the same.
    """
    asked = ordered = False
    first_at: float | None = None

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked, ordered, first_at
        asked = True
        if number == signal.SIGTERM:
            now = time.monotonic()
            ordered = ordered or (first_at is not None and now - first_at > SAME_S)
            first_at = now if first_at is None else first_at

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    # Ctrl-C reaches torchrun by itself
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    environ = {**environ, "PET_SIGNALS_TO_HANDLE": "SIGINT,SIGHUP,SIGQUIT"}
    child = subprocess.Popen(command, env=environ, preexec_fn=_ignore_stop_signals)
    sent_at = 0.0
    try:
        while child.poll() is None:
            if ordered:
                print("SIGTERM again: ending all ranks without saving", file=sys.stderr)
                for process in [*_children(child.pid, recursive=True), psutil.Process(child.pid)]:
                    _send(process, signal.SIGKILL)
                return 128 + signal.SIGTERM
            if asked and time.monotonic() - sent_at > _REPEAT_S:
                sent_at = time.monotonic()
                for rank in _children(child.pid, recursive=False):
                    _send(rank, signal.SIGUSR1)
            try:
                child.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _ignore_stop_signals() -> None:
    """Ranks inherit this, until they know what to do."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _children(pid: int, *, recursive: bool) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=recursive)
    except psutil.NoSuchProcess:
        return []


def _send(process: psutil.Process, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)


#: the folder for `note_error`, given to ranks by whoever starts them
FOLDER_VARIABLE = "DCT_VL_ERROR_DIR"


def note_error(message: str) -> None:
    """Leave this rank's last words in the folder, if one was given."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return
    with suppress(OSError):  # the disk may be what failed
        Path(folder, os.environ.get("RANK", "0")).write_text(message)


def first_cause(error: BaseException) -> str:
    """ "KIND: message" of an exception; of one that carries a loader process's stacks as its text,
    of the first of these.
    """
    text = str(error)
    _, is_stack, stacks = text.partition("Traceback (most recent call last):")
    found = re.search(r"^[\w.]*?(\w+): (.*)", stacks, re.MULTILINE) if is_stack else None
    return f"{found[1]}: {found[2]}" if found else f"{type(error).__name__}: {text}"


def describe_errors(folder: Path) -> str:
    """One paragraph a message, the earliest first, with the ranks that left it; "" for none."""
    notes = sorted(folder.iterdir(), key=lambda path: (path.stat().st_mtime_ns, int(path.name)))
    ranks: dict[str, list[int]] = {}
    for note in notes:
        ranks.setdefault(note.read_text(), []).append(int(note.name))
    return "\n".join(f"error on {name_ranks(found)}: {text}" for text, found in ranks.items())


def name_ranks(ranks: Sequence[int]) -> str:
    """ "rank 3", or "ranks 0-3, 6"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    names = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {names}"
