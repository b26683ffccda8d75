"""Paths inside an output folder, and the lock on it.

::

    W/pretrain-000000.tar …     the shards
    W/manifest.json             what is complete, with hashes; written last
    W/quarantine.jsonl          one line per rejected entry
    W/<name>_filtered.json      the entries that the shards hold
    W/.data_prep/index/         where files lie in the source tars
    W/.data_prep/round-0/       plan of the run and a record per finished shard; each
                                --retry-quarantined that found something to do adds a round
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class WorkspaceError(RuntimeError):
    """The output folder cannot be used as asked; the message says what to do."""


@dataclass(frozen=True)
class Round:
    """Files of one planned set of shards."""

    folder: Path

    @property
    def plan(self) -> Path:
        """Shards and counts; written last: where it exists, the plan is complete."""
        return self.folder / "plan.json"

    @property
    def entries(self) -> Path:
        """Accepted entries, one per line, in the order of the source."""
        return self.folder / "entries.jsonl"

    @property
    def order(self) -> Path:
        """Byte offsets into `entries`, int64, in the order of the shards."""
        return self.folder / "order.i64"

    @property
    def rejects(self) -> Path:
        """Quarantine lines of entries that were rejected before any image was read."""
        return self.folder / "rejects.jsonl"

    @property
    def spool(self) -> Path:
        """Bytes of media that came inside their entries, end to end."""
        return self.folder / "media.bin"

    def record(self, number: int) -> Path:
        return self.folder / "shards" / f"{number:06d}.json"


@dataclass(frozen=True)
class Workspace:
    """An output folder."""

    root: Path

    @property
    def state(self) -> Path:
        return self.root / ".data_prep"

    @property
    def index(self) -> Path:
        return self.state / "index"

    @property
    def settings(self) -> Path:
        """Options and versions with which the shards are made."""
        return self.state / "settings.json"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine.jsonl"

    def shard(self, number: int) -> Path:
        return self.root / f"pretrain-{number:06d}.tar"

    def filtered(self, json_name: str) -> Path:
        return self.root / f"{Path(json_name).stem}_filtered.json"

    def rounds(self) -> list[Round]:
        """Rounds with a complete plan, oldest first."""
        found: list[Round] = []
        while (candidate := self.round(len(found))).plan.exists():
            found.append(candidate)
        return found

    def round(self, number: int) -> Round:
        return Round(self.state / f"round-{number}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; WorkspaceError where another run holds it.

        The lock goes with its process, so that nothing is left to clean after a kill.
        """
        self.state.mkdir(parents=True, exist_ok=True)
        with (self.state / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise WorkspaceError(
                    f"another run is writing to {self.root}; wait for it or end it"
                ) from error
            yield
