"""Stream the entries of a JSON list or of a JSONL file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ijson
import orjson

from data_prep.sources.files import SourceError


def iter_entries(path: Path) -> Iterator[Any]:
    """Entries of a JSON list, or of a JSONL file, in order; SourceError where it is neither.

    Of a list, numbers with a fraction come as Decimal: with floats the parser would also refuse
    integers of more than 64 bits. An empty line of JSONL is skipped.
    """
    if path.suffix == ".jsonl":
        yield from _iter_lines(path)
        return
    with path.open("rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":  # a byte order mark
            file.seek(0)
        start = file.tell()
        if _first_byte(file) != b"[":
            raise SourceError(f"{path} is no JSON list; expected [{{…}}, …] or a .jsonl file")
        file.seek(start)
        try:
            yield from ijson.items(file, "item")
        except ijson.JSONError as error:
            raise SourceError(
                f"{path} is no sound JSON ({str(error).splitlines()[0]}); fetch it again"
            ) from error


def _iter_lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise SourceError(f"{path}, line {number}, is no JSON: {error}") from error


def _first_byte(file: Any) -> bytes:
    while (byte := file.read(1)).isspace():
        pass
    return byte
