"""Conversations straight from a JSONL file with its media beside it: small sets without shards.

Energon's own JSONL reader finds a line by an index of offsets. A line is read by the readers of
`data_prep convert`, so that all that they take can be trained on as it is.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
from megatron.energon import WorkerConfig, basic_sample_keys, stateless
from megatron.energon.epathlib import EPath
from megatron.energon.flavors.crude import CrudeSample
from megatron.energon.flavors.jsonl import DefaultCrudeJsonlDatasetFactory
from megatron.energon.flavors.jsonl.ijsonl import IJSONL_SUFFIX
from megatron.energon.flavors.jsonl.ijsonl_reader import IJsonlReader
from megatron.energon.flavors.webdataset.structs import FilteredSample

from data_prep.conversation import check_conversation
from data_prep.durable import write_durably
from data_prep.images import check_size
from data_prep.locate import find_file
from data_prep.options import Options
from data_prep.quarantine import Reason, Rejected
from data_prep.sources import Inline, Media, ReadOptions, Refusal, Source, Unreadable
from data_prep.sources.chats import read_entry
from data_prep.sources.entry import MediaKind
from data_prep.video_file import READ_ERRORS, read_header
from dct_tokenizer.decode import header_size
from dct_tokenizer.upright import ImageError
from dct_vl.inputs.samples import CrudeChat

SUFFIX = ".jsonl"
#: of Energon's index, an offset an entry and the end of the file
_OFFSET = struct.Struct("<Q")
#: what is rejected is what `convert` rejects
_OPTIONS = Options()
#: subflavor under which the folder of the media goes to `cook_line`
FOLDER = "folder"


def is_jsonl(path: str | Path) -> bool:
    """Whether data are a JSONL file rather than shards."""
    return Path(path).suffix == SUFFIX


class ChatLines(DefaultCrudeJsonlDatasetFactory):
    """A JSONL file as a dataset of Energon's whose lines stay bytes: one that is no JSON is to be
    rejected like any other sample.

    Args:
        path: of the file; its index is made where there is none of this very file.
    """

    def __init__(
        self, path: str | Path, *, training: bool, worker_config: WorkerConfig, **options: Any
    ) -> None:
        super().__init__(
            EPath(str(indexed(Path(path)))),
            training=training,
            worker_config=worker_config,
            subflavors={FOLDER: str(Path(path).absolute().parent)},
            **options,
        )

    def _load_sample(self, sample: FilteredSample) -> CrudeSample:
        return CrudeSample({**sample, "__subflavors__": self.subflavors})


def num_entries(path: str | Path) -> int:
    """Lines of a file that are not empty."""
    return _index_of(indexed(Path(path))).stat().st_size // _OFFSET.size - 1


def indexed(path: Path) -> Path:
    """The file, or a link to it, with Energon's index of this very file beside it.

    The link lies in the temporary folder; it is for folders that cannot be written to.

    Raises:
        OSError: the file cannot be read.
    """
    index, status = _index_of(path), path.stat()
    if _fits(index, status):
        return path
    offsets = b"".join(map(_OFFSET.pack, [*_starts(path), status.st_size]))
    try:
        write_durably(index, offsets)
        return path
    except OSError:
        name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:16]
        link = Path(tempfile.gettempdir()) / f"dct-vl-{os.getuid()}" / name / path.name
    if not _fits(_index_of(link), status):
        write_durably(_index_of(link), offsets)
    if not link.exists():
        link.symlink_to(path.absolute())
    return link


def _index_of(path: Path) -> Path:
    return path.with_suffix(IJSONL_SUFFIX)


def _fits(index: Path, status: os.stat_result) -> bool:
    if not index.is_file() or index.stat().st_mtime_ns < status.st_mtime_ns:
        return False
    with index.open("rb") as file:
        file.seek(max(index.stat().st_size - _OFFSET.size, 0))
        return file.read() == _OFFSET.pack(status.st_size)


def _starts(path: Path) -> Iterator[int]:
    """Offsets of the lines that are not empty."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.removeprefix(codecs.BOM_UTF8).strip():
                yield offset
            offset += len(line)


def read_chats(path: str | Path) -> Iterator[CrudeChat]:
    """All entries of a file, as training has them."""
    lines = ChatLines(
        path, training=False, worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0)
    )
    reader = IJsonlReader(lines.path)
    for number in range(len(lines)):
        yield cook_line(lines._load_sample(reader[number]))


@stateless
def cook_line(sample: dict[str, Any]) -> CrudeChat:
    """A line of a file with the bytes of its media; a fault goes along, as in `cook_chat`."""
    source = sample["__sources__"][0]
    # of a file in a metadataset nobody says the folder
    folder = (sample.get("__subflavors__") or {}).get(FOLDER) or Path(
        str(source.dataset_path)
    ).parent
    folder = Path(folder).absolute()
    file = Path(source.shard_name)
    try:
        return CrudeChat(
            **basic_sample_keys(sample),
            **_read(sample["json"], _source(folder, file), source.index),
        )
    except Rejected as error:
        line = _line_number(Path(str(source.dataset_path)), source.index)
        fault = f"line {line} of {file}: {error}"
        return CrudeChat(**basic_sample_keys(sample), record=b"", images=(), fault=fault)


def _read(line: Any, source: Source, index: int) -> dict[str, Any]:
    """record, images and videos; raises Rejected."""
    if isinstance(line, bytes):
        try:
            line = orjson.loads(line.removeprefix(codecs.BOM_UTF8))
        except orjson.JSONDecodeError as error:
            line = Unreadable(f"the line is no JSON: {error}")
    entry = read_entry(source, index, None, line)
    if isinstance(entry, Refusal):
        raise Rejected(Reason(entry.reason), entry.detail)
    images, videos = entry.images, entry.videos
    # control tokens are looked for with the model's own tokenizer, by what plans the sample
    checked = check_conversation(entry.conversations, len(images), len(videos), control=())
    record = {
        "id": entry.id,
        "source": entry.raw.get("source"),
        "conversations": checked.turns,
        "image": [one.path for one in images],
        "video": [one.path for one in videos],
    }
    try:
        data = orjson.dumps(record)
    except TypeError as error:
        raise Rejected(Reason.MALFORMED_ENTRY, str(error)) from error
    return {
        "record": data,
        "images": tuple(_bytes(one, source.data_dir) for one in images),
        "videos": tuple(_bytes(one, source.data_dir) for one in videos),
    }


def _bytes(media: Media, folder: Path) -> bytes:
    """Of an image or video that `data_prep convert` would keep; raises Rejected."""
    if isinstance(media.held, Inline):
        data = media.held.data
    else:
        found = find_file(
            folder,
            media.path,
            media.kind,
            lacking=f"is no file below {folder}; media in tars need shards: python -m data_prep "
            "convert",
        )
        try:
            data = (folder / found.file).read_bytes()
        except OSError as error:
            raise Rejected(Reason.UNREADABLE_SOURCE, str(error)) from error
    if not data:
        raise Rejected(Reason.EMPTY_FILE, f"{media.path} has no bytes")
    try:
        check_size(*_size(media.kind, data), _OPTIONS)
    except Rejected as error:
        raise Rejected(error.reason, f"{media.path}: {error.detail}") from error
    return data


def _size(kind: MediaKind, data: bytes) -> tuple[int, int]:
    """(height, width) in pixels, from the header."""
    if kind == "image":
        try:
            return header_size(data)
        except ImageError as error:
            raise Rejected(Reason(error.fault), str(error)) from error
    try:
        header = read_header(data)
    except READ_ERRORS as error:
        raise Rejected(Reason.CORRUPT_VIDEO, str(error)) from error
    return header.height, header.width


@lru_cache(maxsize=64)
def _source(folder: Path, file: Path) -> Source:
    path = folder / file
    return Source(
        format="messages", data_dir=folder, file=path, files=(path,), tars=(), options=ReadOptions()
    )


def _line_number(path: Path, index: int) -> int:
    """From 1; entries are numbered from 0, without empty lines."""
    with _index_of(path).open("rb") as file:
        file.seek(index * _OFFSET.size)
        (start,) = _OFFSET.unpack(file.read(_OFFSET.size))
    with path.open("rb") as file:
        before = file.read(start).count(b"\n")
        # another's index may begin an entry at the empty lines before it
        for line in file:
            before += 1
            if line.strip():
                break
    return before
