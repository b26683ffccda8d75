"""Read the bytes of located media, wherever they lie."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from data_prep.locate import ImageReader
from data_prep.quarantine import Reason, Rejected
from data_prep.sources import Location, SourceError

if TYPE_CHECKING:
    from data_prep.sources.table_cells import CellReader


class MediaReader:
    """Reads for one shard; what it opens stays open between reads.

    Args:
        data_dir: folder of the source.
        index_folder: of the tar index.
        spool: bytes that came inside their entries; opened when the first of them is read.
    """

    def __init__(self, data_dir: Path, index_folder: Path, spool: Path) -> None:
        self._files = ImageReader(data_dir, index_folder)
        self._spool_path = spool
        self._spool: BinaryIO | None = None
        self._data_dir = data_dir
        self._cells: CellReader | None = None

    def read(self, location: Location) -> bytes:
        """Encoded bytes of an image or a video; raises Rejected where they are not all there."""
        if location.place == "file":
            return self._files.read(location)
        if location.place == "row":
            return self._read_row(location)
        return self._read_spool(location)

    def close(self) -> None:
        self._files.close()
        if self._cells is not None:
            self._cells.close()
        if self._spool is not None:
            self._spool.close()

    def _read_row(self, location: Location) -> bytes:
        if self._cells is None:
            # pyarrow takes a second to import
            from data_prep.sources.table_cells import CellReader

            self._cells = CellReader(self._data_dir)
        try:
            return self._cells.read(location.file, location.offset, location.column)
        except (OSError, LookupError, SourceError) as error:
            raise Rejected(Reason.UNREADABLE_SOURCE, str(error)) from error

    def _read_spool(self, location: Location) -> bytes:
        try:
            if self._spool is None:
                self._spool = self._spool_path.open("rb")
            data = os.pread(self._spool.fileno(), location.size, location.offset)
        except OSError as error:
            raise Rejected(Reason.UNREADABLE_SOURCE, str(error)) from error
        if len(data) != location.size:
            raise Rejected(
                Reason.UNREADABLE_SOURCE, f"{self._spool_path} ends before the media of {location}"
            )
        return data
