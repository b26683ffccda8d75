"""The closed list of reasons for which an entry is not stored."""

from enum import Enum


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
