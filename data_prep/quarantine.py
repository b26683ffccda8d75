"""Reasons for rejecting an entry, and the lines of ``quarantine.jsonl``."""

from collections import Counter
from enum import Enum
from pathlib import Path
from typing import Any

import orjson

from data_prep.sources import Location


class Reason(str, Enum):
    """Why an entry was rejected; the value is what ``quarantine.jsonl`` and the manifest show."""

    # the entry itself
    MALFORMED_ENTRY = "malformed_entry"  # not an object, or its id or image is of a wrong type
    NO_CONVERSATION = "no_conversation"
    MALFORMED_TURN = "malformed_turn"  # a turn that is not an object, or has an unknown role
    VALUE_NOT_TEXT = "value_not_text"
    ROLES_DO_NOT_ALTERNATE = "roles_do_not_alternate"
    EMPTY_QUESTION = "empty_question"
    EMPTY_ANSWER = "empty_answer"
    IMAGE_MARKS_MISMATCH = "image_marks_mismatch"  # <image> marks against images
    TEXT_ONLY = "text_only"  # with --text-only drop
    VIDEO = "video"  # the entry has a video, and only images are prepared here
    # finding its images
    MISSING_IMAGE = "missing_image"
    UNSAFE_PATH = "unsafe_path"  # absolute, or leads out of the data folder
    NOT_A_REGULAR_FILE = "not_a_regular_file"  # a link, device, folder or sparse member
    UNREADABLE_SOURCE = "unreadable_source"  # the tar or file ends early or cannot be read
    # the images
    EMPTY_FILE = "empty_file"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED_IMAGE = "truncated_image"
    CORRUPT_IMAGE = "corrupt_image"
    UNSUPPORTED_IMAGE = "unsupported_image"  # a sound file of a kind that is not decoded
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
    """One line of JSON: index, id, image path(s), file and offset where known, reason, detail.

    ``line``: of the source's file, where the entry could not be read.
    """
    entry = raw if isinstance(raw, dict) else {}
    fields = {
        "index": index,
        **({} if line is None else {"line": line}),
        "id": _plain(entry.get("id")),
        "image": _plain(entry.get("image")),
        "source": location.source if location else None,
        "file": location.file if location else None,
        "offset": location.offset if location and location.offset >= 0 else None,
        "reason": rejection.reason.value,
        "detail": rejection.detail,
    }
    return orjson.dumps(fields) + b"\n"


def quarantined_indices(path: Path) -> set[int]:
    """Indices of the entries in a quarantine file."""
    with path.open("rb") as lines:
        return {orjson.loads(line)["index"] for line in lines}


def missing_by_folder(path: Path) -> Counter[str]:
    """Entries whose image was not found, by the first folder of its path: often a tar's name."""
    folders: Counter[str] = Counter()
    with path.open("rb") as lines:
        for line in lines:
            reject = orjson.loads(line)
            if reject["reason"] == Reason.MISSING_IMAGE.value:
                image = reject["image"] if isinstance(reject["image"], str) else reject["image"][0]
                folders[image.removeprefix("./").partition("/")[0]] += 1
    return folders


def _plain(value: Any) -> Any:
    """Ids and image fields as they stand; whatever is no text or number as its repr."""
    if value is None or isinstance(value, str | float):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    return repr(value)[:200]
