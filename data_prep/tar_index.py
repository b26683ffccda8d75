"""Index the source tars and zips in one pass, then read their members without extraction.

The index lives in SQLite on disk, so that memory does not grow with the number of images. A tar is
read again only when its size or modification time changes. Members are kept under normalised names
(`member_name`); of members with equal names the last one counts, as in tar itself. A hard link is
the file that it leads to.
"""

import os
import sqlite3
import tarfile
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from indexed_gzip import IndexedGzipFile

from data_prep.archives import (
    Archive,
    ArchiveError,
    gzip_index,
    kind_of,
    needs_unpacking,
    open_archive,
    open_tar,
    zip_members,
)
from data_prep.durable import remove_partials
from data_prep.sources import SourceError, TarSource
from data_prep.tar_walk import Damage, members

_BATCH = 10_000
#: of the tables; those of another version are made anew
_VERSION = 2
_SCHEMA = """
DROP TABLE IF EXISTS tar;
DROP TABLE IF EXISTS member;
CREATE TABLE tar (
    id INTEGER PRIMARY KEY, name TEXT UNIQUE, size INTEGER, mtime_ns INTEGER, damage TEXT);
CREATE TABLE member (
    name BLOB, tar INTEGER, offset INTEGER, size INTEGER, unread TEXT, copies INTEGER DEFAULT 1,
    PRIMARY KEY (name, tar)) WITHOUT ROWID;
CREATE INDEX repeated ON member (tar) WHERE copies > 1;
"""
_INSERT = """
INSERT INTO member (name, tar, offset, size, unread) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (name, tar) DO UPDATE SET offset = excluded.offset, size = excluded.size,
    unread = excluded.unread, copies = copies + 1
"""
#: name, id of the tar, offset, size, why it is not read
_Row = tuple[bytes, int | None, int, int, str]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file in a tar or zip."""

    tar: str
    offset: int  #: bytes into the uncompressed tar; of a zip: of the local header
    size: int  #: bytes
    unread: str  #: why it is not read ("a link"); "" for a regular file


def member_name(path: str) -> bytes:
    """Form under which names are compared: no ``./``, no doubled slashes, Unicode NFC.

    macOS writes decomposed names into tars where JSON files hold composed ones.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return unicodedata.normalize("NFC", "/".join(parts)).encode("utf-8", "surrogateescape")


class TarIndex:
    """Members of the source tars by name. ``folder`` holds the index and is made where absent."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._pending: list[_Row] = []
        self._database = sqlite3.connect(folder / "members.sqlite")
        try:
            if self._rows("PRAGMA user_version") != [(_VERSION,)]:
                self._database.executescript(f"{_SCHEMA} PRAGMA user_version = {_VERSION};")
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def __enter__(self) -> "TarIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def _explain(self, error: sqlite3.Error) -> SourceError:
        """What SQLite raised, in one line; a broken index is removed, to be made anew."""
        path = self._folder / "members.sqlite"
        if isinstance(error, sqlite3.OperationalError) or not isinstance(
            error, sqlite3.DatabaseError
        ):
            return SourceError(f"{path} cannot be written ({error})")
        self._database.close()
        for leftover in self._folder.glob("members.sqlite*"):
            leftover.unlink()
        return SourceError(
            f"{path} was cut or changed ({error}) and is removed; run the same command again, "
            "which indexes the tars anew"
        )

    def update(
        self, tars: list[TarSource], on_tar: Callable[[TarSource], None] = lambda tar: None
    ) -> None:
        """Read the tars that are new or changed, forget those that are gone.

        One transaction per tar: a killed run leaves no partial pass in the index. ``on_tar``
        is called before a tar is read. Raises SourceError for a file that is no tar.
        """
        remove_partials(self._folder)
        current = {tar.name: (tar.size, tar.mtime_ns) for tar in tars}
        known = set()
        for tar_id, name, *seen in self._rows("SELECT id, name, size, mtime_ns FROM tar"):
            if current.get(name) == tuple(seen):
                known.add(name)
                continue
            with self._database:
                self._database.execute("DELETE FROM member WHERE tar = ?", (tar_id,))
                self._database.execute("DELETE FROM tar WHERE id = ?", (tar_id,))
        for tar in tars:
            try:
                if tar.name not in known:
                    on_tar(tar)
                    with self._database:
                        self._read(tar)
                elif needs_unpacking(tar.path, self._folder):
                    on_tar(tar)
                    open_tar(tar.path, self._folder)[0].close()
            except ArchiveError as error:
                raise SourceError(
                    f"{tar.path} cannot be read as a tar or zip: {error}; fetch it again, unpack "
                    "it, or move it away"
                ) from error
            except sqlite3.Error as error:
                raise self._explain(error) from error

    def faults(self) -> list[str]:
        """What is wrong with the tars, a line each: damage, and members that are there twice."""
        damaged = self._rows("SELECT name, damage FROM tar WHERE damage <> '' ORDER BY name")
        repeated = self._rows(
            "SELECT tar.name, count(*), min(member.name) FROM member JOIN tar ON tar = tar.id "
            "WHERE copies > 1 GROUP BY tar.name ORDER BY tar.name"
        )
        lines = [f"{name} is damaged ({damage}); files may be missing" for name, damage in damaged]
        for name, count, example in repeated:
            lines.append(
                f"{name} holds {count:,} files more than once ({os.fsdecode(example)} …); the last "
                "copy counts, as in tar"
            )
        return lines

    def find(self, name: bytes) -> list[Member]:
        """Members of that name in any tar, tars in order of their names."""
        rows = self._rows(
            "SELECT tar.name, offset, member.size, unread FROM member JOIN tar ON tar = tar.id "
            "WHERE member.name = ? ORDER BY tar.name",
            (name,),
        )
        return [
            Member(tar=tar, offset=offset, size=size, unread=unread)
            for tar, offset, size, unread in rows
        ]

    def _rows(self, query: str, parameters: tuple = ()) -> list[tuple]:
        try:
            return self._database.execute(query, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def _read(self, tar: TarSource) -> None:
        cursor = self._database.execute(
            "INSERT INTO tar (name, size, mtime_ns) VALUES (?, ?, ?)",
            (tar.name, tar.size, tar.mtime_ns),
        )
        damage = "; ".join(self._read_members(tar, cursor.lastrowid))
        self._database.execute("UPDATE tar SET damage = ? WHERE id = ?", (damage, cursor.lastrowid))

    def _read_members(self, tar: TarSource, tar_id: int | None) -> list[str]:
        """Store the members; what is damaged."""
        if kind_of(tar.path) == "zip":
            for name, offset, size, unread in zip_members(tar.path):
                self._insert((member_name(name), tar_id, offset, size, unread))
            self._flush()
            return []
        damages: list[Damage] = []
        file, broken = open_tar(tar.path, self._folder)
        with file:
            try:
                for row in self._tar_rows(members(file, damages.append), tar_id):
                    self._insert(row)
            except tarfile.ReadError as error:
                raise ArchiveError(broken or str(error)) from error
            except (OSError, EOFError) as error:
                # what came before the break is sound
                if not isinstance(file, IndexedGzipFile):
                    raise
                broken = f"its gzip data break off ({error})"
            self._flush()
            if isinstance(file, IndexedGzipFile):
                file.export_index(str(gzip_index(self._folder, tar.name)))
        if broken and not self._holds_any(tar_id):
            raise ArchiveError(broken)
        shown = [str(damage) for damage in damages[:3]]
        more = [f"{len(damages) - 3} more places"] if len(damages) > 3 else []
        return [*shown, *more, *([broken] if broken else [])]

    def _tar_rows(self, found: Iterator[tarfile.TarInfo], tar_id: int | None) -> Iterator[_Row]:
        for member in found:
            if member.isdir():
                continue
            name = member_name(member.name)
            if member.islnk():
                yield self._linked(name, tar_id, member_name(member.linkname))
                continue
            unread = "" if member.isreg() else "a link or a device"
            unread = "a sparse file" if member.issparse() else unread
            yield name, tar_id, member.offset_data, member.size, unread

    def _linked(self, name: bytes, tar_id: int | None, target: bytes) -> _Row:
        """A hard link is another name of a file that stands before it."""
        self._flush()
        row = self._database.execute(
            "SELECT offset, size, unread FROM member WHERE name = ? AND tar = ?", (target, tar_id)
        ).fetchone()
        offset, size, unread = row or (0, 0, "a link to a file that is not in the tar")
        return name, tar_id, offset, size, unread

    def _holds_any(self, tar_id: int | None) -> bool:
        query = "SELECT EXISTS (SELECT 1 FROM member WHERE tar = ?)"
        return bool(self._database.execute(query, (tar_id,)).fetchone()[0])

    def _insert(self, row: _Row) -> None:
        self._pending.append(row)
        if len(self._pending) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        self._database.executemany(_INSERT, self._pending)
        self._pending.clear()


class TarReader:
    """Reads by offset from the archives of a folder, keeping them open between reads.

    ``index_folder`` is where `TarIndex` left what it takes to enter compressed tars.
    """

    def __init__(self, data_dir: Path, index_folder: Path) -> None:
        self._data_dir = data_dir
        self._index_folder = index_folder
        self._open: dict[str, Archive] = {}

    def read(self, tar: str, offset: int, size: int) -> bytes:
        """Bytes of a member; fewer than ``size`` where the tar ends early. Raises OSError."""
        archive = self._open.get(tar)
        if archive is None:
            archive = self._open[tar] = open_archive(self._data_dir / tar, self._index_folder)
        return archive.read(offset, size)

    def close(self) -> None:
        for archive in self._open.values():
            archive.close()
        self._open.clear()
