"""Sources of entries: a reader a format, all of which yield the same `Entry`.

Nothing here knows of plans and shards; `data_prep.plan` takes what the readers yield.
"""

from data_prep.sources.chats import ID_KEYS, MEDIA_KEYS, Chat, read_chat, read_id
from data_prep.sources.entry import (
    Entry,
    Inline,
    Media,
    MediaKind,
    ReadOptions,
    Refusal,
    Refused,
    Row,
    Source,
)
from data_prep.sources.files import (
    Location,
    Place,
    SourceError,
    TarSource,
    find_tars,
)
from data_prep.sources.formats import FORMATS, describe, open_source, read_entries
from data_prep.sources.json_entries import LINE_SUFFIXES, Unreadable, find_json, iter_entries

__all__ = [
    "FORMATS",
    "ID_KEYS",
    "LINE_SUFFIXES",
    "MEDIA_KEYS",
    "Chat",
    "Entry",
    "Inline",
    "Location",
    "Media",
    "MediaKind",
    "Place",
    "ReadOptions",
    "Refusal",
    "Refused",
    "Row",
    "Source",
    "SourceError",
    "TarSource",
    "Unreadable",
    "describe",
    "find_json",
    "find_tars",
    "iter_entries",
    "open_source",
    "read_chat",
    "read_entries",
    "read_id",
]
