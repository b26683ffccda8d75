"""Files of media: their suffixes, the tars in a data folder, and where in them one lies."""

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
