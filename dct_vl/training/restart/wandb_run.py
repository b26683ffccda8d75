"""Which run of Weights & Biases a training run is, over all of its restarts."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

#: in a run's folder
ID_NAME = "wandb-id.txt"


def wandb_id(folder: Path) -> str:
    """The id of the W&B run that belongs to the run in `folder`, made where there is none.

    Only the first rank, which is the one that logs, may ask.
    """
    file = folder / ID_NAME
    known = file.read_text().strip() if file.is_file() else ""
    if not known:
        known = uuid4().hex[:8]
        file.write_text(f"{known}\n")
    return known


def begin_wandb_run(folder: Path) -> None:
    """Let what starts at step 0 in `folder` be a run of its own."""
    (folder / ID_NAME).unlink(missing_ok=True)
