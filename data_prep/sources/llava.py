"""LLaVA entries: ``{"id", "image", "video", "conversations": [{"from", "value"}]}``."""

from collections.abc import Iterator
from typing import Any

from data_prep.sources.entry import Entry, Media, MediaKind, Refusal, Refused, Source
from data_prep.sources.json_entries import iter_entries


def read_llava(source: Source) -> Iterator[Entry | Refusal]:
    """Entries of a JSON list or a JSONL file."""
    for index, raw in enumerate(iter_entries(source.file)):
        try:
            yield _entry(index, raw)
        except Refused as error:
            yield Refusal(index=index, line=None, raw=raw, reason=error.reason, detail=error.detail)


def _entry(index: int, raw: Any) -> Entry:
    if not isinstance(raw, dict):
        raise Refused("malformed_entry", f"the entry is a {type(raw).__name__}")
    original_id = raw.get("id")
    if isinstance(original_id, bool) or not isinstance(original_id, str | int | None):
        raise Refused("malformed_entry", f"the id is a {type(original_id).__name__}")
    return Entry(
        index=index,
        raw=raw,
        id=original_id,
        conversations=raw.get("conversations"),
        media=(*_media("image", raw.get("image")), *_media("video", raw.get("video"))),
    )


def _media(kind: MediaKind, value: Any) -> tuple[Media, ...]:
    if value is None or value == "":
        return ()
    paths = value if isinstance(value, list) else [value]
    if not all(isinstance(path, str) and path for path in paths):
        raise Refused(
            "malformed_entry", f"{kind} is a {type(value).__name__}; expected a path or paths"
        )
    return tuple(Media(kind=kind, path=path) for path in paths)
