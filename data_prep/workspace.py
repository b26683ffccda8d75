"""Paths inside an output folder, and the lock on it.

::

    W/pretrain-000000.tar …     the shards
    W/manifest.json             what is complete, with hashes; written last
    W/quarantine.jsonl          one line per rejected entry
    W/<name>_filtered.json      the entries that the shards hold
    W/.data_prep/settings.json  options and versions with which the shards are made
    W/.data_prep/index/         where files lie in the source tars
    W/.data_prep/round-0/       plan of the run and a record per finished shard; each
                                --retry-quarantined that found something to do adds a round
    W/.data_prep/prepared.json  what `prepare` indexed
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from data_prep.remote import WorkspaceError, is_remote
from data_prep.remote import sizes as remote_sizes


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
    def prepared(self) -> Path:
        """From what `prepare` made Energon's index, and what it found damaged."""
        return self.state / "prepared.json"

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

    @property
    def shown(self) -> str:
        """The folder as the user names it."""
        return str(self.root)

    def absolute(self) -> "Workspace":
        """The same from any working folder."""
        return replace(self, root=self.root.absolute())

    def pull(self) -> None:
        """Fetch what is not on this machine; nothing for a local folder."""

    def deliver(self, path: Path) -> None:
        """Hand over a finished file; nothing for a local folder, where it has its place."""

    def deliver_round(self, one: Round) -> None:
        """Hand over the files of a planned round, its plan last."""
        files = [path for path in one.folder.iterdir() if path.is_file() and path != one.plan]
        for path in (*sorted(files), one.plan):
            self.deliver(path)

    def discard(self, one: Round) -> None:
        """Remove a round with all its files but the shards."""
        shutil.rmtree(one.folder, ignore_errors=True)

    def remove_shard(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def sizes(self) -> dict[str, int]:
        """Bytes of the files directly in the folder, by name."""
        if is_remote(self.root):
            return remote_sizes(self.root)
        with os.scandir(self.root) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}

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

        The lock goes with its process, so that nothing is left to clean after a kill. A folder in
        an object store cannot be held.
        """
        if is_remote(self.root):
            yield
            return
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            lock = (self.state / "lock").open("w")
        except OSError as error:
            raise WorkspaceError(
                f"nothing can be written to {self.root} ({error}): free it or give yourself the "
                "right to write there, or name another folder (of shards: a copy)"
            ) from error
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise WorkspaceError(
                    f"another run is writing to {self.root}; wait for it or end it"
                ) from error
            yield


def read_json(path: Path) -> Any:
    """A file of this package; WorkspaceError where it was cut or changed."""
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: object) -> WorkspaceError:
    """The error for a file that does not hold what this package wrote."""
    return WorkspaceError(f"{path} is not as it was written, it was cut or changed ({error})")


def listed(names: Sequence[str]) -> str:
    """The first names of many, for a message."""
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
