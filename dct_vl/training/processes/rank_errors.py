"""Why ranks ended, said once and last: torchrun prints a screenful about it that does not say."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

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
