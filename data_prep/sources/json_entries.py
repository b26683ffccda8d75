"""Find the file of entries, a JSON list or a JSONL file, and stream them; one that cannot be read
costs itself only.

A list is read piece by piece with the json module's own scanner: it takes every number and string
that Python can hold, so that NaN, Infinity and lone surrogates are found entry by entry.
"""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from data_prep.sources.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, SourceError

#: Suffixes of files with an entry a line.
LINE_SUFFIXES = (".jsonl", ".ndjson")
#: What conversions write beside their shards: objects.
_OWN_NAMES = frozenset(("manifest.json", "settings.json", "stats.json"))
_CHUNK = 1 << 20
#: Characters at the end of what was read in which a scanner's error may come from the cut.
_MARGIN = 16
_BETWEEN = re.compile(r"[ \t\n\r]*,[ \t\n\r]*(?=[^ \t\n\r])")
_SPACE = " \t\n\r"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for an entry that is no JSON."""

    detail: str


def find_json(data_dir: Path, chosen: Path | None) -> Path:
    """The JSON (or JSONL) of entries: the chosen one, else the only one in the folder.

    ``*_filtered.json``, which earlier tools wrote beside the source, counts only where there is no
    other. Raises SourceError with the candidates where the choice is not clear.
    """
    if not data_dir.is_dir():
        raise SourceError(f"{data_dir} is not a folder; --data-dir needs the one with the JSON")
    if chosen is not None:
        for candidate in (chosen, data_dir / chosen):
            if candidate.is_file():
                return candidate
        raise SourceError(f"--json {chosen} is neither a file here nor in {data_dir}")
    candidates = json_files(data_dir)
    if len(candidates) != 1:
        names = ", ".join(p.name for p in candidates) or "none"
        raise SourceError(
            f"{len(candidates)} JSON files in {data_dir} ({names}); name one, with "
            "--json or as SOURCE"
        )
    return candidates[0]


def json_files(data_dir: Path) -> list[Path]:
    """Files of a folder that may hold its entries, by name.

    Neither what says something of an image or video of its name, nor what `datasets`, img2dataset
    and this package say of their own files.
    """
    files = sorted(path for path in data_dir.iterdir() if path.is_file())
    media = {p.stem for p in files if p.suffix[1:].lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES}
    found = [
        path
        for path in files
        if path.suffix in (".json", *LINE_SUFFIXES)
        and not path.name.endswith(("_stats.json", "dataset_info.json", "dataset_infos.json"))
        and path.name != "quarantine.jsonl"
        and not (
            path.suffix == ".json"
            and (path.stem in media or path.name in _OWN_NAMES)
            and not _lists_entries(path)
        )
    ]
    others = [path for path in found if not path.stem.endswith("_filtered")]
    # beside a manifest they are what the shards there hold
    return others if (data_dir / "manifest.json") in files else others or found


def _lists_entries(path: Path) -> bool:
    """Whether a JSON is a list of objects, which are not the turns of one conversation."""
    try:
        first = next((value for _, value in iter_entries(path)), None)
    except SourceError:
        return False
    return isinstance(first, dict) and not first.keys() & {"from", "role"}


def iter_entries(path: Path) -> Iterator[tuple[int, Any]]:
    """Line (from 1) and value of every entry, in order; an `Unreadable` where it is no JSON.

    ``.jsonl`` and ``.ndjson`` files have an entry a line; others hold a list, or lines of objects.
    A byte order mark and empty lines are skipped. Raises SourceError where the file is neither.
    """
    with path.open("rb") as file:
        if file.read(3) != codecs.BOM_UTF8:
            file.seek(0)
        start = file.tell()
        if path.suffix in LINE_SUFFIXES or _holds_lines(file):
            file.seek(start)
            yield from _iter_lines(file)
            return
        file.seek(start)
        if _first_byte(file) != b"[":
            raise SourceError(
                f"{path} is no JSON list; expected [{{…}}, …], or a .jsonl file of one entry a line"
            )
        file.seek(start)
        yield from _ListReader(path, file)


def _iter_lines(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            yield number, orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield number, Unreadable(f"the line is no JSON: {error}")


def _holds_lines(file: BinaryIO) -> bool:
    """Two lines, of which the first is an object: JSON lines under another suffix."""
    first, second = file.readline(), file.readline()
    if not first.lstrip().startswith(b"{") or not second.lstrip().startswith(b"{"):
        return False
    try:
        return isinstance(orjson.loads(first), dict)
    except orjson.JSONDecodeError:
        return False


def _first_byte(file: BinaryIO) -> bytes:
    while (byte := file.read(1)).isspace():
        pass
    return byte


class _ListReader:
    """Iterates over the items of a JSON list, holding little more than one of them."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        # bytes that are no UTF-8 become lone surrogates, which cost their entry
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._constants: list[str] = []
        self._scanner = json.JSONDecoder(parse_constant=self._constants.append)
        self._text = ""
        self._position = 0
        self._line = 1
        self._counted = 0
        self._ended = False

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        self._next_character()
        self._position += 1
        if self._next_character() == "]":
            self._position += 1
        else:
            while True:
                yield self._item()
                match = _BETWEEN.match(self._text, self._position)
                if match:
                    self._position = match.end()
                elif self._ends():
                    break
        if self._next_character():
            raise self._broken("there is more behind the list")

    def _ends(self) -> bool:
        """Whether the list ends here; where it goes on, stand before the next item."""
        separator = self._next_character()
        if separator not in (",", "]"):
            raise self._broken(f"expected a comma or ], found {separator!r}")
        self._position += 1
        if separator == ",":
            self._next_character()
        return separator == "]"

    def _item(self) -> tuple[int, Any]:
        line = self._line_here()
        size = _CHUNK
        while True:
            self._constants.clear()
            try:
                value, end = self._scanner.raw_decode(self._text, self._position)
            except RecursionError as error:
                raise self._broken("it is nested too deeply") from error
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._text) - _MARGIN or error.msg.startswith("Untermin")
                if self._ended or not cut:
                    raise self._broken(error.msg, error.pos) from error
            else:
                # a number near the end of what was read may go on: 1 of 1.5, 1 of 1e+5
                may_go_on = isinstance(value, int | float) and end >= len(self._text) - _MARGIN
                if self._ended or not may_go_on:
                    break
            self._read(size)
            size *= 2
        self._position = end
        if self._constants:
            return line, Unreadable(f"{self._constants[0]} is no JSON")
        return line, value

    def _next_character(self) -> str:
        """Skip white space; "" at the end of the file."""
        while True:
            while self._position < len(self._text) and self._text[self._position] in _SPACE:
                self._position += 1
            if self._position < len(self._text):
                return self._text[self._position]
            if self._ended:
                return ""
            self._read(_CHUNK)

    def _read(self, size: int) -> None:
        """Forget what is behind, read on."""
        self._line_here()
        piece = self._file.read(size)
        self._ended = len(piece) < size
        self._text = self._text[self._position :] + self._decoder.decode(piece, self._ended)
        self._position = self._counted = 0

    def _line_here(self) -> int:
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return self._line

    def _broken(self, detail: str, position: int | None = None) -> SourceError:
        line = self._line_here()
        if position is not None:
            line += self._text.count("\n", self._position, position)
        return SourceError(
            f"{self._path} is no sound JSON (line {line}: {detail}); fetch it again, or write it "
            "as .jsonl, of which one bad line costs one entry"
        )
