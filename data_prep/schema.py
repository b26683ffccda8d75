"""The schema of a sample in a shard: its media parts and its JSON; for its key see `sample_key`.

A sample is ``<key>.json`` beside ``<key>.jpg`` (one image) or ``<key>.0.jpg``, ``<key>.1.jpg`` …
(several), and ``<key>.mp4`` or ``<key>.0.mp4`` … (videos, numbered on their own). The JSON holds
``conversations`` (a list of ``{"from", "value"}``), ``id``, ``source``, ``image`` and ``video``
(original paths, lists where several), ``width`` and ``height`` (lists where several: of the images,
then perhaps of the videos).
Shards of earlier projects are read too: a bare conversations list as JSON, and parts whose
extension is doubled (``jpg.json``, ``png.jpg``) because their keys held a dot.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from data_prep.sources.media_values import media_in
from data_prep.sources.messages import image_in_text, lost_keys

#: Keys of a sample's JSON, and names that are no path whatever they look like.
_KEYS = {
    *("id", "key", "sample_id", "source", "dataset", "data_source", "conversations", "system"),
    *("image", "images", "video", "videos", "width", "height"),
}

__all__ = [
    "ROLES",
    "ChatRecord",
    "SampleParts",
    "SchemaError",
    "Turn",
    "check_all_there",
    "image_parts",
    "json_part",
    "parse_record",
    "sample_parts",
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


#: of media and JSON, for errors
KNOWN_PARTS = (
    "known are json, jpg, jpeg, png, webp, mp4, m4v, mov, mkv, webm, avi, gif, flv, ts, mpg, "
    "mpeg, wmv and ogv, of several 0.jpg, 1.jpg …"
)


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
    #: other keys whose values look like media; a sample that holds none has lost them
    unread: tuple[str, ...] = ()


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
    images, videos = _paths(data, "image"), _paths(data, "video")
    turns = parse_turns(data.get("conversations"))
    if data.get("system"):
        turns = _with_system(turns, data["system"])
    return ChatRecord(
        id=_scalar_text(data.get("id"), "id"),
        source=_scalar_text(data.get("source"), "source"),
        turns=turns,
        images=images,
        sizes=_sizes(data.get("height"), data.get("width"), len(images), len(videos)),
        videos=videos,
        unread=tuple(sorted(key for key in data.keys() - _KEYS if any(media_in(data[key], key)))),
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
        # nearly all turns hold no more than these two
        if len(item) > 2 and (lost := lost_keys(item, ("from", "value"))):
            raise SchemaError(f"turn {position} has {lost}")
        if found := image_in_text(name, text):
            raise SchemaError(
                f"turn {position} names an image in its text, {found[:80]}; expected <image> there"
            )
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


@dataclass(frozen=True, kw_only=True)
class SampleParts:
    """The names of a sample's parts by what they hold."""

    json: str
    images: list[str]  #: in order; [] for text only
    videos: list[str]  #: likewise


def sample_parts(sample: Mapping[str, object], read: Callable[[str], bytes]) -> SampleParts:
    """What the parts of a sample hold, as `image_parts` and its like have it.

    Args:
        read: content of a part. Only parts of unknown names are read here: text beside the media is
            nobody's loss, but whatever is not text may be an image.

    Raises:
        SchemaError: also for a part of an unknown name that is no text.
    """
    known = (_JSON_PART, _IMAGE_PART, _VIDEO_PART)
    for part in sample:
        is_known = part.startswith("__") or any(pattern.fullmatch(part) for pattern in known)
        if not is_known and not _is_text(read(part)):
            raise SchemaError(f"part {part} is of a name that is not known; {KNOWN_PARTS}")
    return SampleParts(
        json=json_part(sample), images=image_parts(sample), videos=video_parts(sample)
    )


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"\0" not in data


def check_all_there(record: ChatRecord, num_images: int, num_videos: int) -> None:
    """Raise SchemaError where the JSON names more media than the sample holds.

    An image that is missing would leave a question about nothing where no mark counts it.
    """
    for kind, named, held in (
        ("image", record.images, num_images),
        ("video", record.videos, num_videos),
    ):
        wanted = sum(map(bool, named))
        if held < wanted:
            raise SchemaError(
                f"the JSON names {wanted} {kind}s, the sample holds {held}: a part is missing, or "
                f"its name is not known; {KNOWN_PARTS}"
            )
    if record.unread and not num_images and not num_videos:
        raise SchemaError(
            f"the JSON has what looks like an image or a video under {record.unread[0]}, the "
            "sample holds none: its part is missing, or the set is to be converted again"
        )


def _with_system(turns: tuple[Turn, ...], system: object) -> tuple[Turn, ...]:
    """A system text beside the conversation, as ShareGPT has it, is its first turn."""
    if not isinstance(system, str):
        raise SchemaError(f"system is {shortened(system)}; expected a text")
    if turns[0].role != "system":
        return (Turn(role="system", text=system), *turns)
    if turns[0].text != system:
        raise SchemaError(f"system is {shortened(system)}, unlike the system turn; expected one")
    return turns


def _paths(data: dict[str, Any], kind: str) -> tuple[str, ...]:
    """Paths under ``image``, or under ``images`` as others call it."""
    found = _string_list(data.get(kind), kind)
    plural = data.get(f"{kind}s")
    others = () if isinstance(plural, int) else _string_list(plural, f"{kind}s")
    if found and others and found != others:
        raise SchemaError(f"{kind} and {kind}s name different {kind}s; expected one of the keys")
    return found or others


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
