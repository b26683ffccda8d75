"""What is asked: the requests of any source, and those of a JSONL file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from data_prep.schema import SchemaError, Turn, parse_turns
from data_prep.sources import (
    LINE_SUFFIXES,
    Inline,
    Media,
    ReadOptions,
    Refused,
    Source,
    Unreadable,
    iter_entries,
    read_chat,
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A conversation that ends with a user's turn."""

    key: str
    #: ``<image>`` and ``<video>`` mark positions; media without a mark precede the first question
    turns: tuple[Turn, ...]
    #: encoded bytes or the files they lie in
    images: tuple[bytes | Path, ...]
    videos: tuple[bytes | Path, ...]
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
    """Entries of a JSONL or JSON file, read as `data_prep` reads them.

    An entry has ``key`` (or ``id``, ``sample_id``), one of ``question`` (a text), ``conversations``
    (``[{"from", "value"}, …]``, as in training) and ``messages`` (``[{"role", "content"}, …]``,
    whose content may be a list of texts, images and videos), ``image`` or ``images``, ``video`` or
    ``videos`` (a path, base64 or a list), and perhaps ``max_new_tokens``. Relative paths start at
    the file's folder. An answer at the end of a conversation is left out: it is what is asked for.

    Raises:
        ValueError: the file cannot be read, or no entry asks anything.
    """

    def __init__(self, path: Path, *, max_new_tokens: int, limit: int | None = None) -> None:
        self._requests: dict[str, Request] = {}
        self.rejected = []
        seen: set[str] = set()
        source = Source(
            format="messages",
            data_dir=path.parent,
            file=path,
            files=(path,),
            tars=(),
            options=ReadOptions(),
        )
        try:
            for index, (line, entry) in enumerate(iter_entries(path)):
                if limit is not None and len(self._requests) >= limit:
                    break
                name = f"line {line}" if path.suffix in LINE_SUFFIXES else f"entry {index}"
                try:
                    if isinstance(entry, Unreadable):
                        raise SchemaError(entry.detail)
                    if not isinstance(entry, dict):
                        raise SchemaError(f"a {type(entry).__name__}; expected an object")
                    key = _key(entry)
                    if key in seen:
                        # by its line: what is rejected under a key is not asked in the next start
                        raise SchemaError(f"the key {key!r} was there before")
                    seen.add(key)
                    name = key
                    self._requests[name] = _request(name, entry, source, index, max_new_tokens)
                except Refused as refused:
                    self.rejected.append((name, SchemaError(refused.detail)))
                except SchemaError as error:
                    self.rejected.append((name, error))
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
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


def _request(
    key: str, entry: dict[str, Any], source: Source, index: int, max_new_tokens: int
) -> Request:
    if "question" in entry:
        question = entry["question"]
        if not isinstance(question, str) or not question.strip():
            raise SchemaError(f"question is {question!r}; expected a text")
        entry = entry | {"conversations": [{"from": "human", "value": question}]}
    elif not entry.keys() & {"conversations", "messages"}:
        raise SchemaError("the line has no question, conversations or messages")
    chat = read_chat(source, index, entry, needs_answer=False)
    turns = parse_turns(chat.conversations)
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
        images=tuple(_file_or_bytes(source, one) for one in chat.images),
        videos=tuple(_file_or_bytes(source, one) for one in chat.videos),
        max_new_tokens=limit,
    )


def _file_or_bytes(source: Source, media: Media) -> bytes | Path:
    if isinstance(media.held, Inline):
        return media.held.data
    return source.data_dir / media.path
