"""Sources of entries: a reader a format, all of which yield the same `Entry`.

Nothing here knows of plans and shards; `data_prep.plan` takes what the readers yield.
"""

from data_prep.sources.entry import Entry, Inline, Media, MediaKind, Refusal, Row, Source
from data_prep.sources.files import (
    Location,
    Place,
    SourceError,
    TarSource,
    find_json,
    find_tars,
)
from data_prep.sources.formats import open_source, read_entries
from data_prep.sources.json_entries import iter_entries

__all__ = [
    "Entry",
    "Inline",
    "Location",
    "Media",
    "MediaKind",
    "Place",
    "Refusal",
    "Row",
    "Source",
    "SourceError",
    "TarSource",
    "find_json",
    "find_tars",
    "iter_entries",
    "open_source",
    "read_entries",
]
