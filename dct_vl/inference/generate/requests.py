"""What is asked: the requests of any source, and those of a JSONL file."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from data_prep.schema import ROLES, SchemaError, Turn, parse_turns
from dct_vl.inputs.chat import IMAGE_MARK, VIDEO_MARK

#: what a content's part is called, and its mark in the text
_MARKS = {"image": IMAGE_MARK, "video": VIDEO_MARK}
Media = tuple[bytes | Path, ...]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A conversation that ends with a user's turn."""

    key: str
    #: ``<image>`` and ``<video>`` mark positions; media without a mark precede the first question
    turns: tuple[Turn, ...]
    #: encoded bytes or the files they lie in
    images: Media
    videos: Media
    max_new_tokens: int

    def read(self) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """Encoded images and videos; raises OSError where a file cannot be read."""
        images, videos = (
            tuple(one if isinstance(one, bytes) else one.read_bytes() for one in media)
            for media in (self.images, self.videos)
        )
        return images, videos


class Requests:
    """All requests, in order; reading them again gives the same ones.

    Attributes:
        keys: of all of them.
        rejected: (key or line, error) of lines that ask nothing.
        digest: changes with the keys, the texts and, of a file's lines, the media's paths.
    """

    keys: list[str]
    rejected: list[tuple[str, ValueError]]
    digest: str

    def __iter__(self) -> Iterator[Request]:
        raise NotImplementedError


class FileRequests(Requests):
    """Lines of a JSONL file.

    A line has ``key`` (or ``id``, ``sample_id``), one of ``question`` (a text), ``conversations``
    (``[{"from", "value"}, …]``, as in training) and ``messages`` (``[{"role", "content"}, …]``,
    whose content may be a list of texts, images and videos), ``image`` or ``images``, ``video`` or
    ``videos`` (a path or a list), and perhaps ``max_new_tokens``. Relative paths start at the
    file's folder. An answer at the end of a conversation is left out: it is what is asked for.

    Raises:
        ValueError: the file cannot be read, or no line asks anything.
    """

    def __init__(self, path: Path, *, max_new_tokens: int, limit: int | None = None) -> None:
        self._requests: dict[str, Request] = {}
        self.rejected = []
        seen: set[str] = set()
        try:
            lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            if limit is not None and len(self._requests) >= limit:
                break
            name = f"line {number}"
            try:
                entry = orjson.loads(line)
                if not isinstance(entry, dict):
                    raise SchemaError(f"a {type(entry).__name__}; expected an object")
                key = _key(entry)
                if key in seen:
                    # by its line: what is rejected under a key is not asked in the next start
                    raise SchemaError(f"the key {key!r} was there before")
                seen.add(key)
                name = key
                self._requests[name] = _request(name, entry, path.parent, max_new_tokens)
            except ValueError as error:
                wrong = error if isinstance(error, SchemaError) else SchemaError(str(error))
                self.rejected.append((name, wrong))
        if not self._requests:
            first = f": {self.rejected[0][0]}: {self.rejected[0][1]}" if self.rejected else ""
            raise ValueError(f"{path} asks nothing{first}")
        self.keys = list(self._requests)
        self.digest = digest_of(self._requests.values(), path.parent)

    def __iter__(self) -> Iterator[Request]:
        yield from self._requests.values()


def digest_of(requests: Iterable[Request], folder: Path | None = None) -> str:
    """Of keys, texts, limits and the sizes of media in memory, and of the media's paths as seen
    from a folder.
    """
    total = hashlib.sha256()
    for one in requests:
        turns = [[turn.role, turn.text] for turn in one.turns]
        content: list[Any] = [one.key, turns, one.max_new_tokens]
        if folder is not None:
            files = [path for path in (*one.images, *one.videos) if isinstance(path, Path)]
            content.append([os.path.relpath(path, folder) for path in files])
        if sizes := [len(data) for data in (*one.images, *one.videos) if isinstance(data, bytes)]:
            content.append(sizes)
        total.update(orjson.dumps(content))
    return total.hexdigest()[:16]


def _key(entry: dict[str, Any]) -> str:
    for name in ("key", "id", "sample_id"):
        found = entry.get(name)
        if isinstance(found, str | int) and not isinstance(found, bool) and str(found):
            return str(found)
    raise SchemaError(f"the line has {', '.join(entry)}; expected a key (or id, sample_id)")


def _request(key: str, entry: dict[str, Any], folder: Path, max_new_tokens: int) -> Request:
    media = {kind: _paths(entry, kind) for kind in _MARKS}
    if "question" in entry:
        question = entry["question"]
        if not isinstance(question, str) or not question.strip():
            raise SchemaError(f"question is {question!r}; expected a text")
        turns: tuple[Turn, ...] = (Turn(role="user", text=question),)
    elif "conversations" in entry:
        turns = parse_turns(entry["conversations"])
    elif "messages" in entry:
        turns = _turns_of_messages(entry["messages"], media)
    else:
        raise SchemaError("the line has no question, conversations or messages")
    if turns[-1].role == "assistant":
        turns = turns[:-1]
    if not turns or turns[-1].role != "user":
        raise SchemaError("the conversation does not end with a user's turn or its answer")
    limit = entry.get("max_new_tokens", max_new_tokens)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise SchemaError(f"max_new_tokens is {limit!r}; expected a whole number of at least 1")
    return Request(
        key=key,
        turns=turns,
        images=tuple(folder / path for path in media["image"]),
        videos=tuple(folder / path for path in media["video"]),
        max_new_tokens=limit,
    )


def _paths(entry: dict[str, Any], kind: str) -> list[str]:
    found = entry.get(f"{kind}s", entry.get(kind))
    paths = [] if found is None else found if isinstance(found, list) else [found]
    if not all(isinstance(path, str) and path for path in paths):
        raise SchemaError(f"{kind} is {found!r}; expected a path or a list of paths")
    return [_path(path) for path in paths]


def _path(text: str) -> str:
    path = text.removeprefix("file://")
    if "://" in path:
        raise SchemaError(f"{text} is an address; expected a file: download it first")
    return path


def _turns_of_messages(messages: object, media: dict[str, list[str]]) -> tuple[Turn, ...]:
    """Turns with marks; the paths of their media are added to `media`."""
    if not isinstance(messages, list) or not messages:
        raise SchemaError("messages is no list of at least one message")
    turns = []
    for number, message in enumerate(messages):
        role = ROLES.get(str(message.get("role"))) if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role is None or not isinstance(content, str | list):
            raise SchemaError(f"message {number} has no known role, or no content")
        pieces = []
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            kind = part.get("type") if isinstance(part, dict) else None
            value = part.get(kind) if kind in ("text", *_MARKS) else None
            if not isinstance(value, str):
                raise SchemaError(
                    f'message {number} has the part {part!r}; expected {{"type": "text", "text"}}, '
                    '{"type": "image", "image": PATH} or {"type": "video", "video": PATH}'
                )
            if kind in _MARKS:
                media[str(kind)].append(_path(value))
            pieces.append(_MARKS.get(str(kind), value))
        turns.append(Turn(role=role, text="\n".join(pieces)))
    return tuple(turns)
