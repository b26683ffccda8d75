"""Names of the files that scores are kept in, in a run's folder or beside an exported one."""

from __future__ import annotations

from pathlib import Path

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
