"""What readers of all formats take, a source, and what they yield: normalised entries."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from data_prep.sources.files import TarSource

MediaKind = Literal["image", "video"]
#: why a reader refuses an entry: values of `data_prep.quarantine.Reason`
RefusalReason = Literal[
    "malformed_entry",
    "malformed_turn",
    "no_answer",
    "no_conversation",
    "remote",
    "unknown_key",
    "unreadable_source",
    "value_not_text",
]
#: of what stands beside an image or a video in a folder; the first that is there is read
CAPTION_SUFFIXES = (".txt", ".json")
#: what the answer of a captioning conversation is asked with
CAPTION_PROMPT = "Describe this image."


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How entries are read; part of what determines the bytes of the shards."""

    ignore: tuple[str, ...] = ()  #: keys or columns that are left out on purpose
    image_column: tuple[str, ...] = ()  #: of tables; (): found by name and type
    video_column: tuple[str, ...] = ()
    conversations_column: str | None = None
    question_column: str | None = None
    answer_column: str | None = None
    text_column: str | None = None  #: of captions
    caption_prompt: str = CAPTION_PROMPT  #: the question of captioning conversations

    def as_json(self) -> dict[str, Any]:
        """Fields by name, as JSON reads them back."""
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source whose format is known; `formats.py` opens and reads it."""

    format: str
    data_dir: Path  #: paths of media are relative to it
    file: Path  #: of the entries; the folder where the format is one of many files
    files: tuple[Path, ...]  #: all that hold entries, in order
    tars: tuple[TarSource, ...]  #: of media, in `data_dir`
    options: ReadOptions
    in_order: bool = True  #: shards take entries in the order of the source
    exact_sizes: bool = False  #: shards are cut by the sizes of their media

    @property
    def name(self) -> str:
        """What the plan, the manifest and the filtered JSON call it."""
        return self.file.name or self.file.resolve().name

    def inputs(self) -> dict[str, list[int]]:
        """Size and mtime of every input file by name: whether a rerun sees the same input."""
        found = {}
        if self.file.is_dir():
            beside = (
                file.with_suffix(suffix)
                for file in self.files
                for suffix in CAPTION_SUFFIXES
                if self.format == "folder"
            )
            stats = [file.stat() for file in self.files]
            stats += [file.stat() for file in beside if file.is_file()]
            found[self.name] = [
                sum(stat.st_size for stat in stats),
                max(stat.st_mtime_ns for stat in stats),
            ]
        else:
            stat = self.file.stat()
            found[self.name] = [stat.st_size, stat.st_mtime_ns]
        found.update({tar.name: [tar.size, tar.mtime_ns] for tar in self.tars})
        return found


class Archives(Protocol):
    """The tars and zips of a source, as they were indexed."""

    def members(self, tar: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Names of the files in an archive in the order of their places, and what reads each;
        that raises OSError where the archive is damaged.
        """


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
    size: int  #: bytes; about the mean of many rows where it need not be exact


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
    line: int | None  #: of the file, from 1, where the format has lines
    raw: dict[str, Any]  #: LLaVA shape: what the filtered JSON gets, conversations replaced
    id: str | int | None
    conversations: Any  #: ``[{"from", "value"}]`` with a mark for each image and video
    images: tuple[Media, ...]  #: in the order of their marks
    videos: tuple[Media, ...]  #: likewise


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """An entry that cannot be read as one."""

    index: int
    line: int | None
    raw: Any  #: what was read; None where nothing was
    reason: RefusalReason
    detail: str


class Refused(Exception):
    """Raised inside a reader for one entry; `reason` and `detail` as in `Refusal`."""

    def __init__(self, reason: RefusalReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason: RefusalReason = reason
        self.detail = detail
