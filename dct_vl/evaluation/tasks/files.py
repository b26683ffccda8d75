"""Find the files of a benchmark under the folder that a user names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson


class TaskDataError(ValueError):
    """Data that is not what the task reads; the message says what was expected and where."""


def find_file(root: Path, patterns: Sequence[str], split: str | None = None) -> Path | None:
    """The file itself, or the only one under it with such a name; None where there is none.

    A file that is named itself needs only the right ending. Of several, those with `split` in
    their name count.

    Raises:
        TaskDataError: several are left.
    """
    if root.is_file():
        return root if root.suffix in {Path(pattern).suffix for pattern in patterns} else None
    found = sorted({path for pattern in patterns for path in root.rglob(pattern)})
    if split is not None:
        found = [path for path in found if split in path.name]
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in found[:6])
        raise TaskDataError(f"{root} holds {names}; name one of them, or a split")
    return found[0] if found else None


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        TaskDataError: it is no JSON.
    """
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise TaskDataError(f"{path} is no JSON: {error}") from error


def entries(data: Any, name: str, path: Path) -> list[dict[str, Any]]:
    """The list of objects under a name of a JSON file.

    Raises:
        TaskDataError: there is none.
    """
    found = data.get(name) if isinstance(data, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        has = ", ".join(data) if isinstance(data, dict) else f"a {type(data).__name__}"
        raise TaskDataError(f'{path} holds {has}; expected an object with a list "{name}"')
    return found


def value(entry: dict[str, Any], names: Sequence[str], where: object) -> Any:
    """The first of several names that an entry has.

    Raises:
        TaskDataError: it has none of them.
    """
    for name in names:
        if entry.get(name) is not None:
            return entry[name]
    raise TaskDataError(
        f"{where}: an entry has {', '.join(map(str, entry))}; expected {' or '.join(names)}"
    )


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, object) of each line that is not empty.

    Raises:
        TaskDataError: a line is no JSON object.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                entry = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise TaskDataError(f"{path}, line {number} is no JSON: {error}") from error
            if not isinstance(entry, dict):
                raise TaskDataError(f"{path}, line {number} is no object")
            yield number, entry


class ImageFolder:
    """Pictures that a benchmark's files name, in one of the folders where people keep them."""

    def __init__(self, root: Path, folders: Sequence[str]) -> None:
        """`folders` are tried under `root` and under the folders above it, two levels up."""
        start = root if root.is_dir() else root.parent
        self._found_one = False
        bases = [start, *list(start.resolve().parents)[:2]]
        self._places = [base / folder for base in bases for folder in (*folders, ".")]

    def find(self, *names: str) -> Path:
        """The first of the names that is there.

        Where none is, though others were: the place where it should be, so that one lost picture
        costs its own question and not those behind it; reading it says that it is not there.

        Raises:
            TaskDataError: none is, and none was before: these are not the pictures.
        """
        for place in self._places:
            for name in names:
                if (path := place / name).is_file():
                    self._found_one = True
                    # the next ones lie there too
                    self._places.remove(place)
                    self._places.insert(0, place)
                    return path
        if self._found_one:
            return self._places[0] / names[0]
        looked = ", ".join(str(place) for place in self._places[:4])
        raise TaskDataError(f"picture {names[0]} is in none of {looked}, …")
