"""Reasons for rejecting an entry, and the lines of ``quarantine.jsonl``."""

import os
from collections import Counter
from enum import Enum
from pathlib import Path
from typing import Any

import orjson

from data_prep.sources import ID_KEYS, MEDIA_KEYS, Location, Media
from data_prep.workspace import unreadable

_MAX_TEXT = 1000


class Reason(str, Enum):
    """Why an entry was rejected; the value is what ``quarantine.jsonl`` and the manifest show."""

    # the entry itself
    MALFORMED_ENTRY = "malformed_entry"  # not an object, or its id or media are of a wrong type
    NO_CONVERSATION = "no_conversation"
    MALFORMED_TURN = "malformed_turn"  # a turn that is not an object, or has an unknown role
    VALUE_NOT_TEXT = "value_not_text"
    ROLES_DO_NOT_ALTERNATE = "roles_do_not_alternate"
    EMPTY_QUESTION = "empty_question"
    EMPTY_ANSWER = "empty_answer"
    IMAGE_MARKS_MISMATCH = "image_marks_mismatch"  # <image> marks against images
    VIDEO_MARKS_MISMATCH = "video_marks_mismatch"  # <video> marks against videos, where it has any
    CONTROL_TOKEN = "control_token"  # a turn holds a token of the template, vision or padding
    TEXT_ONLY = "text_only"  # with --text-only drop
    UNKNOWN_KEY = "unknown_key"  # a key that may hold media or turns which shards would not hold
    NO_ANSWER = "no_answer"  # messages without one of the assistant
    # finding its media
    MISSING_IMAGE = "missing_image"
    MISSING_VIDEO = "missing_video"
    REMOTE = "remote"  # an address on another machine
    UNSAFE_PATH = "unsafe_path"  # leads out of the data folder
    AMBIGUOUS_IMAGE = "ambiguous_image"  # several tars hold a file of that path
    NOT_A_REGULAR_FILE = "not_a_regular_file"  # a link, device, folder, sparse or encrypted member
    UNREADABLE_SOURCE = "unreadable_source"  # the tar or file ends early or cannot be read
    # images and videos
    EMPTY_FILE = "empty_file"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED_IMAGE = "truncated_image"
    CORRUPT_IMAGE = "corrupt_image"
    UNSUPPORTED_IMAGE = "unsupported_image"  # a sound file of a kind that is not decoded
    NOT_A_VIDEO = "not_a_video"  # or one of sound alone
    TRUNCATED_VIDEO = "truncated_video"
    CORRUPT_VIDEO = "corrupt_video"
    UNSUPPORTED_VIDEO = "unsupported_video"  # no decoder of its codec
    TOO_MANY_BYTES = "too_many_bytes"  # a video over --max-video-bytes
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_SMALL = "too_small"
    TOO_ELONGATED = "too_elongated"


class Rejected(Exception):
    """Raised where an entry cannot be stored; ends the work on that entry, never the run."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.detail}"


def reject_line(
    index: int,
    raw: Any,
    rejection: Rejected,
    location: Location | None = None,
    line: int | None = None,
) -> bytes:
    """One line of JSON: index, id, paths of the media, file and offset where known, reason, detail.

    ``line``: of the source's file, where the entry was not planned.
    """
    entry = raw if isinstance(raw, dict) else {}
    id_key = next((key for key in ID_KEYS if entry.get(key) is not None), "id")
    image_key = next((key for key in MEDIA_KEYS["image"] if entry.get(key)), "image")
    video_key = next((key for key in MEDIA_KEYS["video"] if entry.get(key)), None)
    fields = {
        "index": index,
        **({} if line is None else {"line": line}),
        "id": _plain(entry.get(id_key)),
        "image": _plain(entry.get(image_key)),
        **({"video": _plain(entry[video_key])} if video_key else {}),
        "source": location.source if location else None,
        "file": location.file if location else None,
        "offset": location.offset if location and location.offset >= 0 else None,
        "reason": rejection.reason.value,
        "detail": _plain(rejection.detail),
    }
    return orjson.dumps(fields) + b"\n"


def quarantined_indices(path: Path) -> set[int]:
    """Indices of the entries in a quarantine file; WorkspaceError where it was cut or changed."""
    with path.open("rb") as lines:
        try:
            return {orjson.loads(line)["index"] for line in lines}
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise unreadable(path, error) from error


def missing_by_folder(path: Path) -> Counter[str]:
    """Entries with a medium that was not found, by the first folder of its first path: often a
    tar's name.
    """
    folders: Counter[str] = Counter()
    with path.open("rb") as lines:
        for line in lines:
            reject = orjson.loads(line)
            kind = {"missing_image": "image", "missing_video": "video"}.get(reject["reason"])
            if kind is not None:
                found = reject.get(kind)
                # none where the media stand inside the turns
                name = (found[0] if isinstance(found, list) else found) or ""
                first = name.removeprefix("./").partition("/")[0]
                folders[os.path.dirname(name) if name.startswith("/") else first] += 1
    return folders


def _plain(value: Any) -> Any:
    """Ids and image fields as they stand, media as their paths; whatever else is no text or number
    as its repr.

    Long texts are bytes in base64; lone surrogates, which JSON cannot hold, are written as escapes.
    """
    if isinstance(value, str):
        text = value if len(value) <= _MAX_TEXT else value[:_MAX_TEXT] + "…"
        return text.encode("utf-8", "backslashreplace").decode()
    if value is None or isinstance(value, float):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, Media):
        return _plain(value.path)
    if isinstance(value, list) and all(isinstance(item, str | Media) for item in value):
        return [_plain(item) for item in value]
    return _plain(repr(value)[:200])
