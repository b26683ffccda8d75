"""Conversations with media, as LLaVA and as OpenAI, ms-swift, LLaMA-Factory and TRL write them.

An entry has ``conversations`` (``[{"from", "value"}]``) or ``messages`` (``[{"role", "content"}]``,
the content a text with marks or a list of typed parts), its media in them or under a key of
`MEDIA_KEYS`, and perhaps ``system``. What else could carry media or turns is refused by name, so
that no image is lost in silence.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.sources.entry import Archives, Entry, Media, MediaKind, Refusal, Refused, Source
from data_prep.sources.json_entries import Unreadable, iter_entries
from data_prep.sources.media_values import (
    MEDIA_KEYS,
    is_address,
    is_plain_path,
    local_path,
    media_in,
    read_media,
)
from data_prep.sources.messages import MessageReader, image_in_text, lost_keys

ID_KEYS = ("id", "key", "sample_id")
_KIND_OF_KEY = {key: kind for kind, keys in MEDIA_KEYS.items() for key in keys}
MEDIA_NAMES = frozenset(_KIND_OF_KEY)
_NAMES = {"source", "dataset", "data_source"}
#: Keys that say whence known media came: their addresses, or the ends of their paths.
_ORIGINS = {
    *("url", "coco_url", "flickr_url", "source_url", "original_url"),
    *("file_name", "filename", "image_name"),
}
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


def read_chats(source: Source, archives: Archives) -> Iterator[Entry | Refusal]:
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
    messages = raw.get("messages") or (conversations if has_roles(conversations) else None)
    if messages and conversations and messages is not conversations:
        raise Refused("malformed_entry", "the entry has conversations and messages; expected one")
    if not messages:
        turns, plain = conversations, found.keys() <= {"image", "video"}
        _refuse_lost_keys(turns, source.options.ignore)
    else:
        reader = MessageReader(source, index, listed)
        turns, plain = reader.read(messages, needs_answer=needs_answer), False
        listed = reader.media()
    _refuse_images_in_texts(turns)
    if raw.get("system"):
        turns, plain = _with_system(turns, raw["system"]), False
    if raw.keys() - _KNOWN_KEYS:
        _refuse_lost_media(source, raw, (*listed["image"], *listed["video"]))
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
    if type(original_id) not in (str, int) or type(image) is not str or type(turns) is not list:
        return None
    if not is_plain_path(image) or not all(map(_is_usual_turn, turns)):
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


def _is_usual_turn(turn: Any) -> bool:
    """Whether it is a text and whose, and certainly no more."""
    if type(turn) is not dict or len(turn) != 2 or "from" not in turn:
        return False
    value = turn.get("value")
    return type(value) is str and "<img>" not in value


def has_roles(conversations: Any) -> bool:
    """Whether turns are messages, ``{"role", "content"}``, rather than LLaVA's."""
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


def _refuse_lost_keys(turns: Any, ignore: tuple[str, ...]) -> None:
    """Refuse what LLaVA's turns have beside their texts; what is no turn is refused later."""
    for number, turn in enumerate(turns if isinstance(turns, list) else ()):
        if isinstance(turn, dict) and (lost := lost_keys(turn, ("from", "value", *ignore))):
            raise Refused("unknown_key", f"turn {number} has {lost}")


def _refuse_images_in_texts(turns: Any) -> None:
    for number, turn in enumerate(turns if isinstance(turns, list) else ()):
        if isinstance(turn, dict) and (found := image_in_text(turn.get("from"), turn.get("value"))):
            raise Refused(
                "malformed_turn",
                f"turn {number} names an image in its text, {found[:80]}; expected <image> there "
                "and the path under the entry's key image",
            )


def _refuse_lost_media(source: Source, raw: dict[str, Any], media: tuple[Media, ...]) -> None:
    """Refuse media under unknown keys that are none of the known ones, by their whole paths."""
    known = {one.path for one in media}
    num_addresses: Counter[str] = Counter()
    for key in sorted(raw.keys() - _KNOWN_KEYS):
        for name, text in media_in(raw[key], key):
            path = local_path(source, text)
            origin = name.lower() in _ORIGINS
            if path in known or (origin and any(one.endswith(f"/{path}") for one in known)):
                continue
            if origin and is_address(text) and num_addresses[name] < len(media):
                num_addresses[name] += 1
                continue
            raise Refused(
                "unknown_key",
                f"{key} holds what looks like an image or a video ({text[:80]}); media are read "
                f"from {', '.join(_KIND_OF_KEY)}; --ignore {key} leaves it out",
            )
