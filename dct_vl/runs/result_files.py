"""Result files in a run's folder or beside an exported one: their names, and reading them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: of `dct-vl answers`
ANSWERS_NAME = "answers.jsonl"
#: of `dct-vl words`
WORDS_NAME = "words.jsonl"
#: of `dct-vl speed`
SPEED_NAME = "speed.json"
#: what `dct-vl export` says of a folder, in that folder
EXPORT_NAME = "dct_vl_export.json"


def beside(output: Path, end: str) -> Path:
    """File that belongs to an output: a.jsonl → a.END. Other names are kept whole, x.v1 → x.v1.END,
    or x.v1 and x.v2 would share it.
    """
    if output.suffix == ".jsonl":
        return output.with_suffix(f".{end}")
    return output.with_name(f"{output.name}.{end}")


def outside_answers(out: str | Path) -> Path:
    """Where the answers of an exported folder go: beside it."""
    return Path(out).with_name(f"{Path(out).name}.answers.jsonl")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file is missing, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content
