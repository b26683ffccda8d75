"""Reading bytes of a source tar by offset, without extracting it."""

import os
from pathlib import Path
from typing import BinaryIO

from indexed_gzip import IndexedGzipFile

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
