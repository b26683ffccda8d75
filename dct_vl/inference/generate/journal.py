"""The file of answers: appended as they end, repaired after a kill, ordered at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from data_prep.durable import write_durably
from dct_vl.inputs.rejects import reject_line
from dct_vl.runs.result_files import beside


class Journal:
    """Answers, rejected requests and the settings of both, in three files side by side.

    ``A.jsonl`` holds one object a line with its "key"; ``A.rejected.jsonl`` what could not be
    asked; ``A.settings.json`` what must not change between two starts.

    Args:
        output: file of answers.
        starts_over: answers of other settings are dropped; otherwise they are an error.
    """

    def __init__(self, output: Path, *, starts_over: bool = False) -> None:
        self.output = output
        self.starts_over = starts_over
        self.rejected = beside(output, "rejected.jsonl")
        self.settings = beside(output, "settings.json")

    def prepare(self, settings: dict[str, Any], keys: Sequence[str]) -> set[str]:
        """Prepare the files for appending; returns the keys that are answered or rejected.

        One process calls this before others append. An incomplete last line is removed.

        Raises:
            ValueError: the answers there were made with other settings, or are not ours.
        """
        self.output.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._check(settings)
        except ValueError:
            if not self.starts_over:
                raise
            self.remove()
            self._check(settings)
        known = set(keys)
        answered = _whole_lines(self.output)
        for line in answered:
            if line["key"] not in known:
                raise ValueError(
                    f"{self.output} has an answer to {line['key']!r}, which is not asked: choose "
                    "another output"
                )
        _replace(self.output, answered)
        rejected = _whole_lines(self.rejected)
        if self.rejected.exists():
            _replace(self.rejected, rejected)
        return {line["key"] for line in (*answered, *rejected)}

    def _check(self, settings: dict[str, Any]) -> None:
        content = orjson.dumps(settings, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
        if self.settings.exists():
            before = self._settings_there()
            now = orjson.loads(content)
            for name in sorted({*before, *now}):
                if before.get(name) != now.get(name):
                    raise ValueError(
                        f"{self.output} was begun with {name}={before.get(name)!r}, now it is "
                        f"{now.get(name)!r}: choose another output, or delete {self.settings.name} "
                        "and the answers"
                    )
            return
        if self.output.exists() and self.output.stat().st_size:
            raise ValueError(
                f"{self.output} is there without {self.settings.name}, so that nobody knows how "
                "its answers were made: choose another output"
            )
        write_durably(self.settings, content)

    def _settings_there(self) -> dict[str, Any]:
        """Settings of the start before; a damaged file says nothing of the answers there."""
        try:
            found = orjson.loads(self.settings.read_bytes())
        except orjson.JSONDecodeError as error:
            found = error
        if not isinstance(found, dict):
            raise ValueError(
                f"{self.settings} is damaged ({found}), so that nobody knows how the answers of "
                f"{self.output.name} were made: choose another output, or delete both"
            )
        return found

    def add(self, lines: Sequence[dict[str, Any]]) -> None:
        """Append answers in one write; several processes may do so."""
        _append(self.output, lines)

    def reject(self, key: str, error: Exception) -> None:
        """Append a request that cannot be asked, with the reason."""
        _append(self.rejected, [reject_line(key, error)])

    def remove(self) -> None:
        for file in (self.output, self.rejected, self.settings):
            file.unlink(missing_ok=True)

    def read(self) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """Lines of answers, and of what could not be asked, by key."""
        answered, rejected = map(_whole_lines, (self.output, self.rejected))
        return {line["key"]: line for line in answered}, {line["key"]: line for line in rejected}

    def finish(self, keys: Sequence[str]) -> tuple[int, int]:
        """Put lines into the order of the requests; returns how many are answered and rejected."""
        position = {key: number for number, key in enumerate(keys)}
        counts = []
        for file in (self.output, self.rejected):
            lines = _whole_lines(file)
            ordered = sorted(lines, key=lambda line: position.get(line["key"], len(position)))
            if ordered != lines:
                _replace(file, ordered)
            counts.append(len(lines))
        return counts[0], counts[1]


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of the lines that are whole, the first one of each key."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            entry = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("key"), str):
            found.setdefault(entry["key"], entry)
    return list(found.values())


def _append(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    data = b"".join(orjson.dumps(line) + b"\n" for line in lines)
    with open(path, "ab", buffering=0) as file:
        file.write(data)


def _replace(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    write_durably(path, b"".join(orjson.dumps(line) + b"\n" for line in lines))
