"""Conversations with media, as LLaVA and as OpenAI, ms-swift, LLaMA-Factory and TRL write them.

An entry has ``conversations`` (``[{"from", "value"}]``) or ``messages`` (``[{"role", "content"}]``,
the content a text with marks or a list of typed parts), its media in them or under a key of
`MEDIA_KEYS`, and perhaps ``system``. What else could carry media or turns is refused by name, so
that no image is lost in silence.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.sources.entry import Entry, Media, MediaKind, Refusal, Refused, Source
from data_prep.sources.json_entries import Unreadable, iter_entries
from data_prep.sources.media_values import is_address, is_plain_path, media_in, read_media
from data_prep.sources.messages import MessageReader

ID_KEYS = ("id", "key", "sample_id")
#: Keys that hold media, by kind; an entry uses one of each kind.
MEDIA_KEYS: dict[MediaKind, tuple[str, ...]] = {
    "image": ("image", "images", "image_path", "image_paths"),
    "video": ("video", "videos", "video_path", "video_paths"),
}
_KIND_OF_KEY = {key: kind for kind, keys in MEDIA_KEYS.items() for key in keys}
_NAMES = {"source", "dataset", "data_source"}
_KNOWN_KEYS = {*ID_KEYS, *_KIND_OF_KEY, *_NAMES, "conversations", "messages", "system"}
#: Keys that change what an entry says, in ways that shards do not hold.
_UNSUPPORTED_KEYS = (
    *("tools", "functions", "objects", "audio", "audios", "history"),
    *("chosen", "rejected", "rejected_response", "rejected_messages", "rejected_images"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chat:
    """What an entry says, and its media."""

    conversations: Any  #: ``[{"from", "value"}]`` with marks; of LLaVA entries unchecked
    images: tuple[Media, ...]
    videos: tuple[Media, ...]
    plain: bool  #: the entry says it in LLaVA's own keys


def read_chats(source: Source) -> Iterator[Entry | Refusal]:
    """Entries of a JSON list or a JSONL file."""
    for index, (line, raw) in enumerate(iter_entries(source.file)):
        yield read_entry(source, index, line, raw)


def read_entry(source: Source, index: int, line: int | None, raw: Any) -> Entry | Refusal:
    """An entry from its object; ``line`` is where it stands."""
    if type(raw) is dict and len(raw) == 3 and (entry := _usual_entry(index, line, raw)):
        return entry
    try:
        if isinstance(raw, Unreadable):
            raise Refused("malformed_entry", raw.detail)
        if not isinstance(raw, dict):
            raise Refused("malformed_entry", f"the entry is a {type(raw).__name__}")
        return _entry(source, index, line, raw)
    except Refused as error:
        return Refusal(index=index, line=line, raw=raw, reason=error.reason, detail=error.detail)


def read_chat(
    source: Source, index: int, raw: dict[str, Any], *, needs_answer: bool = True
) -> Chat:
    """Turns and media of an entry's object; raises Refused, also of messages without an answer."""
    if source.options.ignore:
        raw = {key: value for key, value in raw.items() if key not in source.options.ignore}
    _refuse_unsupported(raw)
    found = {key: raw[key] for key in raw if key in _KIND_OF_KEY and raw[key]}
    listed: dict[MediaKind, tuple[Media, ...]] = {"image": (), "video": ()}
    for key, value in found.items():
        kind = _KIND_OF_KEY[key]
        media = read_media(source, index, kind, value)
        if listed[kind] and media != listed[kind]:
            keys = " and ".join(name for name in found if _KIND_OF_KEY[name] == kind)
            raise Refused("malformed_entry", f"{keys} hold different {kind}s; expected one of them")
        listed[kind] = media
    conversations = raw.get("conversations")
    messages = raw.get("messages") or (conversations if _has_roles(conversations) else None)
    if messages and conversations and messages is not conversations:
        raise Refused("malformed_entry", "the entry has conversations and messages; expected one")
    if not messages:
        turns, plain = conversations, found.keys() <= {"image", "video"}
    else:
        reader = MessageReader(source, index, listed)
        turns, plain = reader.read(messages, needs_answer=needs_answer), False
        listed = reader.media()
    if raw.get("system"):
        turns, plain = _with_system(turns, raw["system"]), False
    if raw.keys() - _KNOWN_KEYS:
        _refuse_lost_media(raw, (*listed["image"], *listed["video"]))
    plain = plain and all(
        [one.path for one in listed[_KIND_OF_KEY[key]] if one.held is None]
        == (value if isinstance(value, list) else [value])
        for key, value in found.items()
    )
    return Chat(conversations=turns, images=listed["image"], videos=listed["video"], plain=plain)


def read_id(raw: dict[str, Any]) -> str | int | None:
    """The id under the first of `ID_KEYS` that there is; raises Refused for one of another type."""
    found = next((raw[key] for key in ID_KEYS if raw.get(key) is not None), None)
    if isinstance(found, bool) or not isinstance(found, str | int | None):
        raise Refused("malformed_entry", f"the id is a {type(found).__name__}")
    return found


def _usual_entry(index: int, line: int | None, raw: dict[str, Any]) -> Entry | None:
    """What nearly all entries of large sets are: an id, an image by its path, a conversation."""
    original_id, image, turns = raw.get("id"), raw.get("image"), raw.get("conversations")
    if type(original_id) not in (str, int) or type(image) is not str or _has_roles(turns):
        return None
    if turns is None or not is_plain_path(image):
        return None
    return Entry(
        index=index,
        line=line,
        raw=raw,
        id=original_id,
        conversations=turns,
        images=(Media(kind="image", path=image),),
        videos=(),
    )


def _entry(source: Source, index: int, line: int | None, raw: dict[str, Any]) -> Entry:
    original_id = read_id(raw)
    chat = read_chat(source, index, raw)
    if not chat.plain or original_id != raw.get("id"):
        raw = {"id": original_id} | {
            kind: media[0].path if len(media) == 1 else [one.path for one in media]
            for kind, media in (("image", chat.images), ("video", chat.videos))
            if media
        }
    return Entry(
        index=index,
        line=line,
        raw=raw,
        id=original_id,
        conversations=chat.conversations,
        images=chat.images,
        videos=chat.videos,
    )


def _has_roles(conversations: Any) -> bool:
    return (
        isinstance(conversations, list)
        and bool(conversations)
        and isinstance(conversations[0], dict)
        and "role" in conversations[0]
    )


def _with_system(turns: Any, system: Any) -> Any:
    if not isinstance(system, str):
        raise Refused("malformed_entry", f"system is a {type(system).__name__}; expected a text")
    if not isinstance(turns, list) or not turns:
        return turns
    first = turns[0] if isinstance(turns[0], dict) else {}
    if first.get("from") != "system":
        return [{"from": "system", "value": system}, *turns]
    if first.get("value") != system:
        raise Refused("malformed_entry", "system differs from the system turn; expected one")
    return turns


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    for key in _UNSUPPORTED_KEYS:
        if raw.get(key):
            raise Refused(
                "unknown_key",
                f"{key} cannot be stored: the shards hold a conversation with images and videos; "
                f"--ignore {key} converts the rest",
            )


def _refuse_lost_media(raw: dict[str, Any], media: tuple[Media, ...]) -> None:
    """Refuse media under unknown keys; addresses and names of known media say whence they came."""
    known = {one.path.rpartition("/")[2] for one in media}
    for key in sorted(raw.keys() - _KNOWN_KEYS):
        lost = [
            text
            for text in media_in(raw[key])
            if not (media and is_address(text)) and text.rpartition("/")[2] not in known
        ]
        if lost:
            raise Refused(
                "unknown_key",
                f"{key} holds what looks like an image or a video ({lost[0]}); media are read from "
                f"{', '.join(_KIND_OF_KEY)}; --ignore {key} leaves it out",
            )
