"""What datasets write where an image or a video belongs: paths, addresses, bytes, structs."""

import base64
import binascii
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

from data_prep.sources.entry import Inline, Media, MediaKind, Refused, Source
from data_prep.sources.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_DATA_URL = re.compile(r"data:(?:[\w.+/-]*)(?:;[\w=.-]+)*;base64,", re.IGNORECASE)
#: what base64 of JPEG, PNG, WebP, GIF, BMP and MP4 files starts with
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk", "AAAA")
#: shorter texts are paths
_MIN_BASE64 = 64
#: Keys of an object that stands for one image or video.
STRUCT_KEYS = ("bytes", "base64", "path", "url")
#: Keys that hold media, by kind; an entry uses one of each kind.
MEDIA_KEYS: dict[MediaKind, tuple[str, ...]] = {
    "image": ("image", "images", "image_path", "image_paths"),
    "video": ("video", "videos", "video_path", "video_paths"),
}
#: Keys whose texts are media whatever they look like.
_NAMED = {
    *(key for keys in MEDIA_KEYS.values() for key in keys),
    *("image_url", "image_urls", "img_url", "video_url", "video_urls"),
}


def read_media(source: Source, index: int, kind: MediaKind, value: Any) -> tuple[Media, ...]:
    """Media of a key's value: one, or a list; raises Refused for what is neither.

    ``index`` is the entry's, by which bytes without a name are called.
    """
    if isinstance(value, list):
        return tuple(_read_one(source, index, kind, one) for one in value)
    return () if _is_empty(value) else (_read_one(source, index, kind, value),)


def is_plain_path(text: str) -> bool:
    """Whether it is certainly a path as it stands: neither absolute nor an address nor bytes."""
    return 0 < len(text) < _MIN_BASE64 and text[0] != "/" and ":" not in text


def is_address(text: str) -> bool:
    """Whether it lies on another machine."""
    return bool(_SCHEME.match(text)) and not text.startswith("file://")


def _is_empty(value: Any) -> bool:
    if isinstance(value, dict):
        return all(value.get(key) in (None, b"", "") for key in STRUCT_KEYS)
    return value is None or value == ""


def _read_one(source: Source, index: int, kind: MediaKind, value: Any) -> Media:
    if isinstance(value, Media):
        return value
    name = ""
    if isinstance(value, dict):
        value, name = _open_struct(kind, value)
    if isinstance(value, bytes):
        return _held(source, index, kind, name, value)
    if not isinstance(value, str) or not value:
        raise Refused(
            "malformed_entry", f"{kind} is a {type(value).__name__}; expected a path or paths"
        )
    if (data := _decoded(kind, value)) is not None:
        return _held(source, index, kind, name, data)
    if is_address(value):
        raise Refused(
            "remote",
            f"{kind} {value} is an address; expected a file: download it first (img2dataset does "
            "many at once) and name the file",
        )
    return Media(kind=kind, path=local_path(source, value))


def _open_struct(kind: MediaKind, value: dict[str, Any]) -> tuple[Any, str]:
    """Value and name of ``{"bytes", "path"}``, ``{"url"}`` or ``{"base64"}``."""
    data, path = value.get("bytes"), value.get("path")
    if data not in (None, b"", ""):
        if isinstance(data, str):
            data = _from_base64(kind, data)
        return data, path if isinstance(path, str) else ""
    if isinstance(encoded := value.get("base64"), str) and encoded:
        return _from_base64(kind, encoded), ""
    for key in ("path", "url"):
        if isinstance(value.get(key), str) and value[key]:
            return value[key], ""
    raise Refused(
        "malformed_entry", f"{kind} has the keys {', '.join(value)}; expected bytes, path or url"
    )


def _held(source: Source, index: int, kind: MediaKind, name: str, data: bytes) -> Media:
    file = source.name
    return Media(kind=kind, path=name or f"{file}#{index}", held=Inline(file=file, data=data))


def _decoded(kind: MediaKind, text: str) -> bytes | None:
    """Bytes of a ``data:`` address or of bare base64; None for anything else."""
    if text.startswith("data:"):
        match = _DATA_URL.match(text)
        if match is None:
            raise Refused("malformed_entry", f"{kind} is {text[:40]!r}; expected data:…;base64,…")
        return _from_base64(kind, text[match.end() :])
    if len(text) >= _MIN_BASE64 and text.startswith(_BASE64_STARTS) and "." not in text[-8:]:
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error:
            return None
    return None


def _from_base64(kind: MediaKind, text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused("malformed_entry", f"the base64 of {kind} is damaged: {error}") from error


def local_path(source: Source, text: str) -> str:
    """A path as the Locator takes it: from the data folder, where it lies in that."""
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    if not text.startswith("/"):
        return text
    for folder in (os.path.abspath(source.data_dir), os.path.realpath(source.data_dir)):
        if text.startswith(folder.rstrip("/") + "/"):
            return os.path.relpath(text, folder)
    return text


def media_in(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """What looks like media in a key's value, at any depth, each with the key that it stands under.

    Paths, addresses, the starts of media themselves, and any text under a name of media.
    """
    # no recursion: JSON may be nested deeper than Python calls
    left = [(key, value)]
    while left:
        name, one = left.pop()
        if isinstance(one, Media):
            yield name, one.path
        elif isinstance(one, bytes):
            yield name, f"{len(one)} bytes"
        elif isinstance(one, str):
            if (one and name in _NAMED) or _is_media_text(one):
                yield name, one
        elif isinstance(one, list):
            left += [(name, item) for item in reversed(one)]
        elif isinstance(one, dict):
            left += [
                (name if name in _NAMED and inner in STRUCT_KEYS else inner, item)
                for inner, item in reversed(one.items())
            ]


def _is_media_text(text: str) -> bool:
    if text.startswith(("data:image/", "data:video/")):
        return True
    if len(text) >= _MIN_BASE64 and text.startswith(_BASE64_STARTS[:4]) and " " not in text[:200]:
        return "." not in text[-8:]
    if len(text) > 1000 or "\n" in text:
        return False
    path = re.split("[?#]", text, maxsplit=1)[0] if "://" in text else text
    _, dot, suffix = path.rpartition("/")[2].rpartition(".")
    return bool(dot) and suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
