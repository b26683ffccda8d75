"""The schema of a sample in a shard: its key, its media parts and its JSON.

A sample is ``<key>.json`` beside ``<key>.jpg`` (one image) or ``<key>.0.jpg``, ``<key>.1.jpg`` …
(several), and ``<key>.mp4`` or ``<key>.0.mp4`` … (videos, numbered on their own). The JSON holds
``conversations`` (a list of ``{"from", "value"}``), ``id``, ``source``, ``image`` and ``video``
(original paths, lists where several), ``width`` and ``height`` (lists where several: of the images,
then perhaps of the videos).
Shards of earlier projects are read too: a bare conversations list as JSON, and parts whose
extension is doubled (``jpg.json``, ``png.jpg``) because their keys held a dot.

Keys are unique, safe in a tar member's name and readable back to the original id. WebDataset takes
everything after the first dot of a member's name for the part's extension, so an id such as
``ai2d/1.png`` must not become a key as it stands.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

__all__ = [
    "ROLES",
    "ChatRecord",
    "SchemaError",
    "Turn",
    "decode_key",
    "encode_key",
    "image_parts",
    "json_part",
    "parse_record",
    "video_parts",
]

#: Role of a turn by the name that a dataset gives it.
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}

_IMAGE_PART = re.compile(r"(?:(\d+)\.)?(?:[A-Za-z]+\.)?(?:jpe?g|png|webp)", re.IGNORECASE)
_VIDEO_PART = re.compile(
    r"(?:(\d+)\.)?(?:mp4|m4v|mov|mkv|webm|avi|gif|flv|ts|mpe?g|wmv|ogv)", re.IGNORECASE
)
_JSON_PART = re.compile(r"(?:[A-Za-z]+\.)?json", re.IGNORECASE)


class SchemaError(ValueError):
    """A sample that does not follow the schema; the message says where and what was expected."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message of a conversation."""

    role: str  #: "user", "assistant" or "system"
    text: str  #: as in the source; ``<image>`` and ``<video>`` mark the positions of media in it


@dataclass(frozen=True, kw_only=True)
class ChatRecord:
    """A sample's JSON."""

    id: str  #: the original id, "" where the shard holds none
    source: str  #: dataset that it came from, for instance "ai2d"; "" where the shard holds none
    turns: tuple[Turn, ...]
    images: tuple[str, ...]  #: original paths, in the order of the image parts
    sizes: tuple[tuple[int, int], ...]  #: (height, width) in pixels per image; () where unknown
    videos: tuple[str, ...] = ()  #: original paths, in the order of the video parts


def parse_record(data: bytes | str | dict[str, Any] | list[Any]) -> ChatRecord:
    """Read a sample's JSON, as text or already decoded; raise SchemaError with the reason."""
    if isinstance(data, bytes | str):
        try:
            data = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise SchemaError(f"the sample's JSON cannot be read: {error}") from error
    if isinstance(data, list):
        data = {"conversations": data}
    if not isinstance(data, dict):
        raise SchemaError(
            f"the sample's JSON is a {type(data).__name__}; expected an object or a list of turns"
        )
    images = _string_list(data.get("image"), "image")
    videos = _string_list(data.get("video"), "video")
    return ChatRecord(
        id=_scalar_text(data.get("id"), "id"),
        source=_scalar_text(data.get("source"), "source"),
        turns=parse_turns(data.get("conversations")),
        images=images,
        sizes=_sizes(data.get("height"), data.get("width"), len(images), len(videos)),
        videos=videos,
    )


def parse_turns(conversations: object) -> tuple[Turn, ...]:
    """Turns of a ``conversations`` list; raise SchemaError where an item is not a turn."""
    if not isinstance(conversations, list) or not conversations:
        raise SchemaError(
            f"conversations is {shortened(conversations)}; expected a list of at least one turn"
        )
    turns = []
    for position, item in enumerate(conversations):
        if not isinstance(item, dict):
            raise SchemaError(f"turn {position} is {shortened(item)}; expected an object")
        name, text = item.get("from"), item.get("value")
        role = ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            raise SchemaError(
                f"turn {position} is from {shortened(name)}; expected one of {', '.join(ROLES)}"
            )
        if not isinstance(text, str):
            raise SchemaError(f"turn {position} has the value {shortened(text)}; expected a string")
        turns.append(Turn(role=role, text=text))
    return tuple(turns)


def image_parts(sample: Mapping[str, object]) -> list[str]:
    """Names of the parts that hold the sample's images, in order; [] for text only.

    ``sample`` is a WebDataset or Energon crude sample (part name to content; names that start
    with ``__`` are its metadata). Numbered parts must count from 0 without a gap: a missing one is
    a SchemaError, since every later image would stand at the wrong ``<image>``.
    """
    return _media_parts(sample, _IMAGE_PART, "image")


def video_parts(sample: Mapping[str, object]) -> list[str]:
    """Names of the parts that hold the sample's videos; see `image_parts`."""
    return _media_parts(sample, _VIDEO_PART, "video")


def _media_parts(sample: Mapping[str, object], pattern: re.Pattern[str], kind: str) -> list[str]:
    numbered: dict[int, str] = {}
    single: list[str] = []
    for part in sample:
        match = None if part.startswith("__") else pattern.fullmatch(part)
        if match is None:
            continue
        if match[1] is None:
            single.append(part)
        elif numbered.setdefault(int(match[1]), part) != part:
            raise SchemaError(f"parts {numbered[int(match[1])]} and {part} claim the same place")
    if len(single) > 1 or (single and numbered):
        found = ", ".join([*single, *numbered.values()])
        raise SchemaError(f"{kind} parts {found}; expected one, or all of them numbered from 0")
    if sorted(numbered) != list(range(len(numbered))):
        raise SchemaError(f"{kind} parts {sorted(numbered)}; expected numbers from 0 without a gap")
    return single or [numbered[number] for number in range(len(numbered))]


def json_part(sample: Mapping[str, object]) -> str:
    """Name of the part that holds the sample's JSON: ``json``, or an earlier project's."""
    found = [p for p in sample if not p.startswith("__") and _JSON_PART.fullmatch(p)]
    if len(found) != 1:
        parts = ", ".join(p for p in sample if not p.startswith("__")) or "none"
        raise SchemaError(f"{len(found)} JSON parts among the sample's parts ({parts}); expected 1")
    return found[0]


def _string_list(value: object, name: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise SchemaError(f"{name} is {shortened(value)}; expected a path or a list of paths")


def _scalar_text(value: object, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise SchemaError(f"{name} is {shortened(value)}; expected a string or an integer")


def _sizes(
    height: object, width: object, num_images: int, num_videos: int
) -> tuple[tuple[int, int], ...]:
    """Sizes of the images; those of videos may follow and are checked alike."""
    if height is None and width is None:
        return ()
    heights = height if isinstance(height, list) else [height]
    widths = width if isinstance(width, list) else [width]
    sides = [*heights, *widths]
    known = (num_images, num_images + num_videos)
    if len(heights) != len(widths) or len(heights) not in known:
        raise SchemaError(
            f"{len(heights)} heights, {len(widths)} widths for {num_images} images"
            + (f" and {num_videos} videos" if num_videos else "")
        )
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise SchemaError(
            f"height {shortened(height)}, width {shortened(width)}; expected positive integers"
        )
    return tuple(zip(heights, widths, strict=True))[:num_images]


def shortened(value: object) -> str:
    """A value in an error message, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


#: Longest escaped id that a key carries; with the index and ``.99.jpg`` it stays below the 100
#: characters of a plain ustar name. The JSON of the sample holds the id in any case.
MAX_ESCAPED_ID = 80

_UNSAFE = re.compile(rb"[^A-Za-z0-9-]")
_ESCAPE = re.compile(rb"_(_|[0-9A-F]{2})")
_KEY = re.compile(r"(\d{9,})(?:-((?:[A-Za-z0-9-]|__|_[0-9A-F]{2})*))?")


def encode_key(original_id: str, index: int) -> str:
    """``encode_key("ai2d/1.png", 7) == "000000007-ai2d_2F1_2Epng"``.

    ``index`` is the entry's position in the source JSON (0-based): it makes the key unique even
    where ids repeat. In the id ``_`` becomes ``__`` and every other byte of UTF-8 outside
    ``[A-Za-z0-9-]`` becomes ``_XX``. An id of more than `MAX_ESCAPED_ID` escaped characters is
    left out of the key.
    """
    if index < 0:
        raise ValueError(f"index {index} is negative; expected the entry's position from 0")
    escaped = _UNSAFE.sub(_escape, original_id.encode("utf-8", "surrogatepass")).decode("ascii")
    return f"{index:09d}-{escaped}" if len(escaped) <= MAX_ESCAPED_ID else f"{index:09d}"


def decode_key(key: str) -> tuple[int, str | None]:
    """Index and original id of a key; the id is None where it was too long for the key.

    Raises ValueError where `encode_key` cannot have made the key.
    """
    match = _KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"key {key!r} was not made by encode_key: expected 000000007-escaped_id")
    if match[2] is None:
        return int(match[1]), None
    original = _ESCAPE.sub(_unescape, match[2].encode("ascii"))
    return int(match[1]), original.decode("utf-8", "surrogatepass")


def _escape(match: re.Match[bytes]) -> bytes:
    return b"__" if match[0] == b"_" else b"_%02X" % match[0][0]


def _unescape(match: re.Match[bytes]) -> bytes:
    return b"_" if match[1] == b"_" else bytes.fromhex(match[1].decode("ascii"))
