"""Messages as chat APIs and trainers write them, turned into LLaVA's turns with marks."""

import re
from collections.abc import Collection
from typing import Any

from data_prep.sources.entry import Media, MediaKind, Refused, Source
from data_prep.sources.media_values import STRUCT_KEYS, media_in, read_media

#: LLaVA's name of a role by the name in messages.
ROLE_NAMES = {
    "user": "human",
    "human": "human",
    "assistant": "gpt",
    "gpt": "gpt",
    "system": "system",
    "developer": "system",
}
#: Kind of a typed part, by its type and by the key of a part without one.
_PART_KINDS: dict[str, MediaKind | None] = {
    "text": None,
    "input_text": None,
    "output_text": None,
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "video": "video",
    "video_url": "video",
}
_VALUE_KEYS: dict[MediaKind, tuple[str, ...]] = {
    "image": ("image", "image_url", *STRUCT_KEYS),
    "video": ("video", "video_url", *STRUCT_KEYS),
}
#: Keys that change what a message or a part says.
_UNSUPPORTED = (
    *("tool_calls", "function_call", "reasoning_content", "refusal", "audio"),
    *("video_start", "video_end"),
)
#: Keys by which trainers leave a turn out of the loss.
_LEARNT = ("loss", "weight", "train")
#: How Qwen-VL names an image in a text; ``<img src=…>`` of HTML is none.
_IN_TEXT = re.compile(r"<img>\s*[^<\s][^<]*</img>")
_MARKS: dict[MediaKind, str] = {"image": "<image>", "video": "<video>"}


class MessageReader:
    """Reads the messages of one entry.

    Args:
        source, index: of the entry.
        listed: media under keys of the entry; parts without a value of their own take them in turn.
    """

    def __init__(
        self, source: Source, index: int, listed: dict[MediaKind, tuple[Media, ...]]
    ) -> None:
        self._source = source
        self._index = index
        self._listed = listed
        self._in_parts: dict[MediaKind, list[Media]] = {"image": [], "video": []}
        self._num_empty: dict[MediaKind, int] = {"image": 0, "video": 0}

    def read(self, messages: Any, *, needs_answer: bool) -> list[dict[str, str]]:
        """Turns ``{"from", "value"}`` with a mark for every typed medium; raises Refused."""
        if not isinstance(messages, list) or not messages:
            raise Refused("no_conversation", "messages is no list of at least one message")
        turns = [self._turn(number, message) for number, message in enumerate(messages)]
        if needs_answer and not any(turn["from"] == "gpt" for turn in turns):
            raise Refused(
                "no_answer",
                "no message is the assistant's; `dct-vl generate` takes the file as questions",
            )
        return turns

    def media(self) -> dict[MediaKind, tuple[Media, ...]]:
        """All media in the order of their marks; raises Refused where parts and keys disagree."""
        found: dict[MediaKind, tuple[Media, ...]] = {}
        for kind, listed in self._listed.items():
            own, num_empty = tuple(self._in_parts[kind]), self._num_empty[kind]
            if own and num_empty:
                raise Refused(
                    "malformed_entry", f"some {kind} parts name their {kind} and some do not"
                )
            if own and listed and own != listed:
                raise Refused(
                    "malformed_entry",
                    f"the {kind}s in the parts differ from those in the entry's key",
                )
            if num_empty and num_empty != len(listed):
                raise Refused(
                    "malformed_entry",
                    f"{kind} parts without a value: {num_empty}; {kind}s of the entry: "
                    f"{len(listed)}",
                )
            found[kind] = own or listed
        return found

    def _turn(self, number: int, message: Any) -> dict[str, str]:
        where = f"message {number}"
        if not isinstance(message, dict):
            raise Refused("malformed_turn", f"{where} is a {type(message).__name__}")
        role = message.get("role", message.get("from"))
        if not isinstance(role, str) or role not in ROLE_NAMES:
            raise Refused(
                "malformed_turn",
                f"{where} has the role {role!r}; expected one of {', '.join(ROLE_NAMES)}",
            )
        self._refuse_lost(where, message, ("role", "from", "content", "value"))
        content = message.get("content", message.get("value"))
        if isinstance(content, str):
            text = content
        elif isinstance(content, list):
            text = self._text_of_parts(where, content)
        else:
            raise Refused(
                "value_not_text", f"{where} holds a {type(content).__name__}; expected a text"
            )
        return {"from": ROLE_NAMES[role], "value": text}

    def _text_of_parts(self, where: str, parts: list[Any]) -> str:
        """Texts stand end to end, as chat templates put them; marks on lines of their own."""
        text, behind_mark = "", False
        for part in parts:
            mark, piece = self._part(where, part)
            if mark:
                text += f"\n{mark}" if text else mark
                behind_mark = True
            elif piece:
                text += f"\n{piece}" if behind_mark else piece
                behind_mark = False
        return text

    def _part(self, where: str, part: Any) -> tuple[str, str]:
        """A mark or a text; the other is ""."""
        if not isinstance(part, dict):
            raise Refused("malformed_turn", f"{where} has a part that is a {type(part).__name__}")
        name = part.get("type") or next(
            (key for key in _PART_KINDS if part.get(key) is not None), None
        )
        if name not in _PART_KINDS:
            raise Refused(
                "malformed_turn",
                f"{where} has a part of the type {name!r}; expected one of "
                f"{', '.join(_PART_KINDS)}",
            )
        kind = _PART_KINDS[name]
        self._refuse_lost(where, part, ("type", "text", *(_VALUE_KEYS[kind] if kind else ())))
        if kind is None:
            if not isinstance(part.get("text"), str):
                raise Refused("malformed_turn", f"{where} has a text part without a text")
            return "", part["text"]
        key = next((k for k in _VALUE_KEYS[kind] if part.get(k) not in (None, "", b"")), None)
        if key is None:
            self._num_empty[kind] += 1
            return _MARKS[kind], ""
        value = {key: part[key]} if key in STRUCT_KEYS else part[key]
        if isinstance(value, list):
            raise Refused("malformed_turn", f"{where} has a {kind} of {len(value)} frames or files")
        self._in_parts[kind] += read_media(self._source, self._index, kind, value)
        return _MARKS[kind], ""

    def _refuse_lost(self, where: str, holder: dict[str, Any], read: tuple[str, ...]) -> None:
        if lost := lost_keys(holder, (*read, *self._source.options.ignore)):
            raise Refused("unknown_key", f"{where} has {lost}")


def lost_keys(holder: dict[str, Any], read: Collection[str]) -> str | None:
    """What a turn or a part has under keys other than those read and shards do not hold.

    In words that follow the turn's number; None where nothing is lost.
    """
    for key in sorted(holder.keys() - set(read)):
        value, why = holder[key], None
        if key in _LEARNT and value is not None and value == 0:
            why = f"{key}: {value!r}, so it is not to be learnt, which shards do not hold"
        elif key in _UNSUPPORTED and value:
            why = f"{key}, which shards do not hold"
        elif found := next(media_in(value, key), None):
            why = (
                f"{key} with what looks like an image or a video ({found[1][:80]}); media of "
                "turns are read from the entry's keys or from typed parts"
            )
        if why:
            return f"{why}; --ignore {key} leaves it out of all turns and entries"
    return None


def image_in_text(name: Any, text: Any) -> str | None:
    """An image that a turn's text names as Qwen-VL does, ``<img>dog.jpg</img>``; None for none.

    Args:
        name: of the role; in answers this is text.
    """
    if not isinstance(text, str) or "<img>" not in text or name in ("gpt", "assistant"):
        return None
    found = _IN_TEXT.search(text)
    return found and found[0]
