"""The formats that are read, by name."""

from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.sources.entry import Entry, Refusal, Source
from data_prep.sources.files import SourceError, find_json, find_tars
from data_prep.sources.llava import read_llava

_READERS: dict[str, Callable[[Source], Iterator[Entry | Refusal]]] = {"llava": read_llava}


def open_source(data_dir: Path, file: Path | None, format_name: str | None) -> Source:
    """Find the entries and the tars in a data folder; SourceError where that is not clear.

    Args:
        data_dir: folder of the media, and of the file where none is named.
        file: of the entries; None for the only one in the folder.
        format_name: one of the known ones; None: as the content has it.
    """
    name = format_name or "llava"
    if name not in _READERS:
        raise SourceError(f"--format is {name!r}; expected one of {', '.join(_READERS)}")
    found = find_json(data_dir, file)
    return Source(format=name, data_dir=data_dir, file=found, tars=tuple(find_tars(data_dir)))


def read_entries(source: Source) -> Iterator[Entry | Refusal]:
    """All entries of a source, in order, with their index from 0."""
    return _READERS[source.format](source)
