"""Read the rows of tables, and their images again for the worker that makes a shard."""

from bisect import bisect_right
from collections.abc import Collection, Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.sources.files import SourceError

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows that are held at a time.
BATCH_ROWS = 16
#: Bytes of a Parquet file that are read at a time; a mapped file takes half as long again.
_BUFFER = 1 << 20


def open_parquet(path: Path) -> Any:
    """A Parquet file, of which only the pages that are read are in memory."""
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read as Parquet ({error}); fetch it again") from error


def arrow_batches(path: Path) -> Iterator["pa.RecordBatch"]:
    """Batches of an Arrow file, mapped into memory."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            yield from reader
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read as Arrow ({error}); save it again") from error


def read_schema(path: Path) -> "pa.Schema":
    """Names and types of the columns of a Parquet or Arrow file."""
    if path.suffix != ".arrow":
        return open_parquet(path).schema_arrow
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            return reader.schema
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read as Arrow ({error}); save it again") from error


def holds_rows(path: Path) -> bool:
    """Whether a Parquet or Arrow file has any."""
    if path.suffix == ".arrow":
        return any(batch.num_rows for batch in arrow_batches(path))
    return bool(open_parquet(path).metadata.num_rows)


def rows_with_sizes(batch: "pa.RecordBatch", columns: Collection[str]) -> list[dict[str, Any]]:
    """Rows as objects; in these columns the number of bytes stands for bytes, which stay where
    they are. Lists come as they are.
    """
    others = [name for name in batch.schema.names if name not in columns]
    rows = batch.select(others).to_pylist()
    for name in columns:
        for row, cell in zip(rows, _with_sizes(batch.column(name)), strict=True):
            row[name] = cell
    return rows


def _with_sizes(column: "pa.Array") -> list[Any]:
    import pyarrow.compute as pc
    import pyarrow.types as types

    if types.is_binary(column.type) or types.is_large_binary(column.type):
        return pc.binary_length(column).to_pylist()
    if not types.is_struct(column.type):
        return column.to_pylist()
    names = [field.name for field in column.type]
    cells = zip(*map(_with_sizes, column.flatten()), strict=True)
    return [dict(zip(names, cell, strict=True)) for cell in cells]


class CellReader:
    """Reads cells of the tables below a folder, in the order of their rows or in any other.

    Arrow files are mapped into memory. Of a Parquet file a few rows are held, and later rows are
    found by reading on from there.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._open: dict[tuple[str, str], _Column] = {}

    def read(self, file: str, number: int, cell: str) -> bytes:
        """Bytes of a cell, ``column/item``; raises OSError or LookupError where it is not there."""
        column, _, item = cell.rpartition("/")
        reader = self._open.get((file, column))
        if reader is None:
            path = self._data_dir / file
            made = _ArrowColumn if path.suffix == ".arrow" else _ParquetColumn
            reader = self._open[file, column] = made(path, column)
        value = reader.cell(number)
        one = value[int(item)] if isinstance(value, list) else value
        data = one["bytes"] if isinstance(one, dict) else one
        if not isinstance(data, bytes):
            raise LookupError(f"row {number} of {file} holds no bytes in {column}")
        return data

    def close(self) -> None:
        self._open.clear()


class _Column:
    """A column of one file."""

    def cell(self, number: int) -> Any:
        """The value in a row."""
        raise NotImplementedError


class _ArrowColumn(_Column):
    def __init__(self, path: Path, column: str) -> None:
        self._batches = [batch.column(column) for batch in arrow_batches(path)]
        self._starts = [0, *accumulate(map(len, self._batches))]

    def cell(self, number: int) -> Any:
        place = _place(self._starts, number)
        return self._batches[place][number - self._starts[place]].as_py()


class _ParquetColumn(_Column):
    def __init__(self, path: Path, column: str) -> None:
        self._file = open_parquet(path)
        self._column = column
        described = self._file.metadata
        groups = range(described.num_row_groups)
        self._starts = [0, *accumulate(described.row_group(group).num_rows for group in groups)]
        self._group = -1
        self._batches: Iterator[Any] = iter(())
        self._first = 0
        self._values: Any = ()

    def cell(self, number: int) -> Any:
        group = _place(self._starts, number)
        if group != self._group or number < self._first:
            self._group = group
            self._first, self._values = self._starts[group], ()
            # the workers are the parallel ones; threads of each would only wait for each other
            self._batches = self._file.iter_batches(
                BATCH_ROWS, row_groups=[group], columns=[self._column], use_threads=False
            )
        while number >= self._first + len(self._values):
            self._first += len(self._values)
            self._values = next(self._batches).column(0)
        return self._values[number - self._first].as_py()


def _place(starts: list[int], number: int) -> int:
    """Of the batch or group with a row; ``starts`` ends with the number of rows."""
    if not 0 <= number < starts[-1]:
        raise LookupError(f"row {number} of {starts[-1]}")
    return bisect_right(starts, number) - 1
