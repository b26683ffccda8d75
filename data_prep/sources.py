"""Find the inputs in a data folder: the JSON of entries, and the tars of images beside it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ijson
import orjson

TAR_SUFFIXES = (
    *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz"),
    *(".tar.zst", ".tar.zstd", ".tzst", ".zip"),
)


class SourceError(ValueError):
    """The data folder cannot be used as it is; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class TarSource:
    """One tar of images. Its `name` is what quarantine lines and the manifest call it."""

    name: str  #: file name, "ai2d.tar"
    stem: str  #: "ai2d": the folder that an entry's image path starts with
    path: Path
    size: int  #: bytes
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where an image lies."""

    source: str  #: dataset by the name of its tar or folder: "ai2d"
    file: str  #: tar name, or path relative to the data folder
    offset: int  #: bytes into the tar; -1 for a file of its own
    size: int  #: bytes

    def __str__(self) -> str:
        return self.file if self.offset < 0 else f"{self.file}@{self.offset}"


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
    found = sorted(p for p in data_dir.iterdir() if p.suffix in (".json", ".jsonl") and p.is_file())
    unfiltered = [p for p in found if not p.stem.endswith("_filtered")]
    candidates = unfiltered or found
    if len(candidates) != 1:
        names = ", ".join(p.name for p in candidates) or "none"
        raise SourceError(
            f"{len(candidates)} JSON files in {data_dir} ({names}); name the one with --json"
        )
    return candidates[0]


def find_tars(data_dir: Path) -> list[TarSource]:
    """The tars directly in the folder, by name. Two tars of one stem are a SourceError."""
    tars: dict[str, TarSource] = {}
    for path in sorted(data_dir.iterdir()):
        suffix = next((s for s in TAR_SUFFIXES if path.name.endswith(s)), None)
        if suffix is None or not path.is_file():
            continue
        stem = path.name.removesuffix(suffix)
        if stem in tars:
            raise SourceError(
                f"{tars[stem].name} and {path.name} in {data_dir} hold the same source; keep one"
            )
        _refuse_lfs_pointer(path)
        stat = path.stat()
        tars[stem] = TarSource(
            name=path.name, stem=stem, path=path, size=stat.st_size, mtime_ns=stat.st_mtime_ns
        )
    return list(tars.values())


def identity(json_path: Path, tars: list[TarSource]) -> dict[str, list[int]]:
    """Size and mtime of every input file by name: whether a rerun sees the same input."""
    stat = json_path.stat()
    files = {json_path.name: [stat.st_size, stat.st_mtime_ns]}
    files.update({tar.name: [tar.size, tar.mtime_ns] for tar in tars})
    return files


def _refuse_lfs_pointer(path: Path) -> None:
    """A clone without Git LFS leaves small text files instead of the tars."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise SourceError(
            f"{path} is a Git LFS pointer, not the tar; "
            f"run `git lfs install && git lfs pull` in {path.parent}"
        )


def iter_entries(path: Path) -> Iterator[Any]:
    """Entries of a JSON list, or of a JSONL file, in order; SourceError where it is neither.

    Of a list, numbers with a fraction come as Decimal: with floats the parser would also refuse
    integers of more than 64 bits. An empty line of JSONL is skipped.
    """
    if path.suffix == ".jsonl":
        yield from _iter_lines(path)
        return
    with path.open("rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":  # a byte order mark
            file.seek(0)
        start = file.tell()
        if _first_byte(file) != b"[":
            raise SourceError(f"{path} is no JSON list; expected [{{…}}, …] or a .jsonl file")
        file.seek(start)
        try:
            yield from ijson.items(file, "item")
        except ijson.JSONError as error:
            raise SourceError(
                f"{path} is no sound JSON ({str(error).splitlines()[0]}); fetch it again"
            ) from error


def _iter_lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise SourceError(f"{path}, line {number}, is no JSON: {error}") from error


def _first_byte(file: Any) -> bytes:
    while (byte := file.read(1)).isspace():
        pass
    return byte
