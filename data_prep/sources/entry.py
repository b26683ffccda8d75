"""What readers of all formats take, a source, and what they yield: normalised entries."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_prep.sources.files import TarSource

MediaKind = Literal["image", "video"]
#: why a reader refuses an entry: values of `data_prep.quarantine.Reason`
RefusalReason = Literal["malformed_entry"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source whose format is known; `formats.py` opens and reads it."""

    format: str
    data_dir: Path  #: paths of media are relative to it
    file: Path  #: of the entries
    tars: tuple[TarSource, ...]  #: of media, in `data_dir`

    @property
    def name(self) -> str:
        """What the plan, the manifest and the filtered JSON call it."""
        return self.file.name

    def inputs(self) -> dict[str, list[int]]:
        """Size and mtime of every input file by name: whether a rerun sees the same input."""
        stat = self.file.stat()
        files = {self.file.name: [stat.st_size, stat.st_mtime_ns]}
        files.update({tar.name: [tar.size, tar.mtime_ns] for tar in self.tars})
        return files


@dataclass(frozen=True, kw_only=True, slots=True)
class Inline:
    """Encoded bytes that came inside an entry; they are spooled beside the plan."""

    file: str  #: that the entry is from
    data: bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Encoded bytes in a table, which the worker that makes the shard reads again."""

    file: str  #: relative to the data folder
    number: int  #: of the row, from 0
    column: str
    size: int  #: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Media:
    """An image or a video of an entry."""

    kind: MediaKind
    path: str  #: as the source has it; a name for bytes that have none
    held: Inline | Row | None = None  #: None: the path is to be found in tars and folders


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A normalised entry; its conversation is unchecked, its media are not yet looked for."""

    index: int  #: position in the source, from 0
    raw: dict[str, Any]  #: LLaVA shape: what the filtered JSON gets, conversations replaced
    id: str | int | None
    conversations: Any  #: ``[{"from", "value"}]`` with a mark for each image and video
    media: tuple[Media, ...]  #: images and videos, each kind in the order of its marks

    def of_kind(self, kind: MediaKind) -> tuple[Media, ...]:
        """The images, or the videos."""
        return tuple(one for one in self.media if one.kind == kind)


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """An entry that cannot be read as one."""

    index: int
    line: int | None  #: of the file, from 1, where the format has lines
    raw: Any  #: what was read; None where nothing was
    reason: RefusalReason
    detail: str


class Refused(Exception):
    """Raised inside a reader for one entry; `reason` and `detail` as in `Refusal`."""

    def __init__(self, reason: RefusalReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason: RefusalReason = reason
        self.detail = detail
