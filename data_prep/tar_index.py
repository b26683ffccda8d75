"""Index the source tars in one pass, then read their members by offset without extraction.

The index lives in SQLite on disk, so that memory does not grow with the number of images. A tar is
read again only when its size or modification time changes. Members are kept under normalised names
(`member_name`); of members with equal names the last one counts, as in tar itself.
"""

import os
import sqlite3
import tarfile
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from indexed_gzip import IndexedGzipFile

from data_prep.sources import SourceError, TarSource

_BATCH = 10_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS tar (
    id INTEGER PRIMARY KEY, name TEXT UNIQUE, size INTEGER, mtime_ns INTEGER, whole INTEGER);
CREATE TABLE IF NOT EXISTS member (
    name BLOB, tar INTEGER, offset INTEGER, size INTEGER, regular INTEGER,
    PRIMARY KEY (name, tar)) WITHOUT ROWID;
"""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file in a tar; ``offset`` and ``size`` in bytes of the uncompressed tar."""

    tar: str
    offset: int
    size: int
    regular: bool  #: False for links, devices and sparse files


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
        self._database = sqlite3.connect(folder / "members.sqlite")
        try:
            self._database.executescript(_SCHEMA)
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
            if tar.name not in known:
                on_tar(tar)
                try:
                    with self._database:
                        self._read(tar)
                except sqlite3.Error as error:
                    raise self._explain(error) from error

    def damaged(self) -> list[str]:
        """Names of the tars that end early or break off at a damaged header."""
        return [row[0] for row in self._rows("SELECT name FROM tar WHERE NOT whole ORDER BY name")]

    def find(self, name: bytes) -> list[Member]:
        """Members of that name in any tar, tars in order of their names."""
        rows = self._rows(
            "SELECT tar.name, offset, member.size, regular FROM member JOIN tar ON tar = tar.id "
            "WHERE member.name = ? ORDER BY tar.name",
            (name,),
        )
        return [
            Member(tar=tar, offset=offset, size=size, regular=bool(regular))
            for tar, offset, size, regular in rows
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
        try:
            with open_tar(tar.path) as file, tarfile.open(fileobj=file, mode="r:") as reader:
                whole = self._read_members(reader, cursor.lastrowid)
                if whole:
                    # tarfile takes a damaged header for the end; the true end is zeros
                    file.seek(reader.offset)
                    whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
                if isinstance(file, IndexedGzipFile):
                    file.export_index(str(gzip_index_path(self._folder, tar.name)))
        except (tarfile.ReadError, OSError) as error:
            raise SourceError(
                f"{tar.path} cannot be read as a tar ({error}); fetch it again or move it away"
            ) from error
        self._database.execute("UPDATE tar SET whole = ? WHERE id = ?", (whole, cursor.lastrowid))

    def _read_members(self, reader: tarfile.TarFile, tar_id: int | None) -> bool:
        """Store the members; False where the tar broke off before its end."""
        rows: list[tuple[bytes, int | None, int, int, bool]] = []
        try:
            while (member := reader.next()) is not None:
                if not member.isdir():
                    regular = member.isreg() and not member.issparse()
                    name = member_name(member.name)
                    rows.append((name, tar_id, member.offset_data, member.size, regular))
                # tarfile keeps every member that it has seen
                reader.members.clear()  # type: ignore[attr-defined]
                if len(rows) >= _BATCH:
                    self._insert(rows)
                    rows.clear()
        except (tarfile.ReadError, EOFError, OSError):
            return False
        finally:
            self._insert(rows)
        return True

    def _insert(self, rows: list[tuple[bytes, int | None, int, int, bool]]) -> None:
        self._database.executemany("INSERT OR REPLACE INTO member VALUES (?, ?, ?, ?, ?)", rows)


#: Uncompressed bytes between two points from which a gzip stream can be entered. Each point costs
#: 32 KiB in the index; a read decompresses half a spacing more than it needs.
_GZIP_SPACING = 4 * 1024 * 1024


def gzip_index_path(folder: Path, tar_name: str) -> Path:
    """Where the entry points of a compressed tar are kept."""
    return folder / f"{tar_name}.gzindex"


def open_tar(path: Path, gzip_index: Path | None = None) -> BinaryIO | IndexedGzipFile:
    """Open a tar for reading; a ``.gz``/``.tgz`` one is decompressed on the fly."""
    if path.suffix not in (".gz", ".tgz"):
        return path.open("rb")
    return IndexedGzipFile(
        str(path), spacing=_GZIP_SPACING, index_file=None if gzip_index is None else str(gzip_index)
    )


class TarReader:
    """Reads by offset from the tars of a folder, keeping them open between reads.

    ``index_folder`` is where `TarIndex` left the entry points of compressed tars.
    """

    def __init__(self, data_dir: Path, index_folder: Path) -> None:
        self._data_dir = data_dir
        self._index_folder = index_folder
        self._open: dict[str, BinaryIO | IndexedGzipFile] = {}

    def read(self, tar: str, offset: int, size: int) -> bytes:
        """Bytes of a member; fewer than ``size`` where the tar ends early. Raises OSError."""
        file = self._open.get(tar)
        if file is None:
            index = gzip_index_path(self._index_folder, tar)
            file = open_tar(self._data_dir / tar, index if index.exists() else None)
            self._open[tar] = file
        if isinstance(file, IndexedGzipFile):
            file.seek(offset)
            return file.read(size)
        return os.pread(file.fileno(), size, offset)

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()
