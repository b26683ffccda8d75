"""Keys of samples: unique, safe in a tar member's name and readable back to the original id.

WebDataset takes everything after the first dot of a member's name for the part's extension, so an
id such as ``ai2d/1.png`` must not become a key as it stands.
"""

import re

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
