"""Find the inputs in a data folder: the JSON of entries, and the tars of media beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

TAR_SUFFIXES = (
    *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz"),
    *(".tar.zst", ".tar.zstd", ".tzst", ".zip"),
)
_IMAGES = (
    "jpg jpeg jpe jfif png webp gif bmp dib tif tiff ppm pgm pbm pnm jp2 j2k jxl avif heic heif "
    "ico svg"
)
IMAGE_SUFFIXES = frozenset(_IMAGES.split())
_VIDEOS = "mp4 m4v mov mkv webm avi mpg mpeg wmv flv ts ogv 3gp"
VIDEO_SUFFIXES = frozenset(_VIDEOS.split())


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


#: What a location's ``file`` and ``offset`` mean: a file of its own or the bytes of a tar, the
#: round's spool of bytes that lay in their entry, or a row of a table.
Place = Literal["file", "spool", "row"]


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where an image or a video lies."""

    source: str  #: dataset by the name of its tar or folder: "ai2d"
    file: str  #: tar name, or path relative to the data folder; of spooled bytes: whence they came
    offset: int  #: bytes into the tar or the spool, row of the table; -1 for a file of its own
    size: int  #: bytes
    place: Place = "file"
    column: str = ""  #: of a row: its column

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

    Neither what lies beside an image of its name, nor what `datasets` and img2dataset say of
    their own files.
    """
    files = sorted(path for path in data_dir.iterdir() if path.is_file())
    pictured = {p.stem for p in files if p.suffix[1:].lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES}
    found = [
        path
        for path in files
        if path.suffix in (".json", ".jsonl", ".ndjson")
        and not path.name.endswith(("_stats.json", "dataset_info.json", "dataset_infos.json"))
        and not (path.suffix == ".json" and path.stem in pictured)
    ]
    return [path for path in found if not path.stem.endswith("_filtered")] or found


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


def _refuse_lfs_pointer(path: Path) -> None:
    """A clone without Git LFS leaves small text files instead of the tars."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise SourceError(
            f"{path} is a Git LFS pointer, not the tar; "
            f"run `git lfs install && git lfs pull` in {path.parent}"
        )
