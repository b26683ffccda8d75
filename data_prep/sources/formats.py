"""The formats that are read: their names, how each is recognised, and what reads it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.sources import captions, chats, tables
from data_prep.sources.entry import Archives, Entry, ReadOptions, Refusal, Source
from data_prep.sources.files import SourceError, find_tars
from data_prep.sources.json_entries import (
    LINE_SUFFIXES,
    Unreadable,
    find_json,
    iter_entries,
    json_files,
)
from data_prep.sources.table_cells import holds_rows

#: Entries that are looked at for their format; the first may be broken.
_NUM_LOOKED_AT = 100
Reader = Callable[[Source, Archives], Iterator[Entry | Refusal]]


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format: what it looks like, and its reader."""

    looks: str
    read: Reader


FORMATS: dict[str, Format] = {
    "llava": Format(
        looks='JSON or JSONL of {"id", "image", "conversations": [{"from", "value"}]}',
        read=chats.read_chats,
    ),
    "messages": Format(
        looks='JSON or JSONL of {"messages": [{"role", "content"}], "images"}',
        read=chats.read_chats,
    ),
    "parquet": Format(looks="a .parquet file, or a folder of them", read=tables.read_tables),
    "hf": Format(
        looks="a folder written by datasets' save_to_disk (state.json and .arrow files)",
        read=tables.read_tables,
    ),
    "webdataset": Format(
        looks="tars of KEY.jpg or KEY.mp4 with KEY.txt or KEY.json, as img2dataset writes them",
        read=captions.read_webdataset,
    ),
    "folder": Format(
        looks="a folder of images and videos with a .txt or .json of the same name beside each",
        read=captions.read_folder,
    ),
}


def open_source(
    data_dir: Path,
    file: Path | None,
    format_name: str | None,
    options: ReadOptions | None = None,
    *,
    in_order: bool = True,
    exact_sizes: bool = False,
) -> Source:
    """Find the entries and the tars in a data folder; SourceError where that is not clear.

    Args:
        data_dir: folder of the media, and of the file where none is named.
        file: of the entries, or a folder of them; None for what the data folder holds.
        format_name: one of `FORMATS`; None: as the content has it.
        options: how entries are read.
        in_order: shards will take entries in the order of the source.
        exact_sizes: they will be cut by the sizes of their media.
    """
    root = data_dir if file is None else _named(data_dir, file)
    name = format_name or recognise(root)
    if name not in FORMATS:
        raise SourceError(f"--format is {name!r}; expected one of {', '.join(FORMATS)}")
    tars = tuple(find_tars(data_dir)) if data_dir.is_dir() else ()
    if name in ("llava", "messages"):
        found = find_json(root, None) if root.is_dir() else find_json(data_dir, file)
        files: tuple[Path, ...] = (found,)
    else:
        found = root
        if name in ("webdataset", "folder") and file is not None and root.is_dir():
            raise SourceError(f"{found} holds its media itself; leave --media-dir out")
        if name == "webdataset":
            tars = tuple(tar for tar in tars if file is None or tar.path.name == found.name)
            files = tuple(tar.path for tar in tars)
        elif name == "folder":
            files = tuple(captions.media_files(found))
        else:
            files = tuple(tables.table_files(found, name))
        if not files:
            raise SourceError(f"{found} holds nothing of the format {name}: {FORMATS[name].looks}")
    if _is_empty(name, files):
        raise SourceError(_no_entry(found))
    return Source(
        format=name,
        data_dir=data_dir,
        file=found,
        files=files,
        tars=tars,
        options=options or ReadOptions(),
        in_order=in_order,
        exact_sizes=exact_sizes,
    )


def read_entries(source: Source, archives: Archives) -> Iterator[Entry | Refusal]:
    """All entries of a source, in order, with their index from 0."""
    return FORMATS[source.format].read(source, archives)


def describe(source: Source) -> Iterator[str]:
    """What the user is told of a source before it is read: of tables, which columns are used."""
    if source.format in ("parquet", "hf"):
        yield tables.describe_columns(source)


def recognise(source: Path) -> str:
    """Name of the format of a file or folder; SourceError lists what is known otherwise."""
    return _recognise_folder(source) if source.is_dir() else _recognise_file(source)


def _recognise_folder(data_dir: Path) -> str:
    if (data_dir / "dataset_dict.json").is_file():
        parts = ", ".join(sorted(p.parent.name for p in data_dir.glob("*/state.json")))
        raise SourceError(f"{data_dir} holds several splits ({parts}); give the folder of one")
    if (data_dir / "state.json").is_file() and any(data_dir.glob("*.arrow")):
        return "hf"
    if json_files(data_dir):
        return _recognise_file(find_json(data_dir, None))
    if captions.holds_samples(tuple(find_tars(data_dir))):
        return "webdataset"
    if tables.table_files(data_dir, "parquet"):
        return "parquet"
    if next(captions.media_files(data_dir), None):
        return "folder"
    names = ", ".join(sorted(path.name for path in data_dir.iterdir())[:8]) or "nothing"
    raise SourceError(f"{data_dir} holds {names}: no format that is known. {_known()}")


def _recognise_file(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return "parquet"
    if suffix == ".tar" or path.name.endswith((".tar.gz", ".tgz")):
        return "webdataset"
    if suffix != ".json" and suffix not in LINE_SUFFIXES:
        raise SourceError(f"{path} is a file of no format that is known. {_known()}")
    some = [value for _, value in islice(iter_entries(path), _NUM_LOOKED_AT)]
    if not some:
        raise SourceError(_no_entry(path))
    found = next(filter(None, map(_format_of, some)), None)
    if found is not None:
        return found
    first = next((value for value in some if not isinstance(value, Unreadable)), None)
    if not isinstance(first, dict):
        what = "nothing that can be read" if first is None else f"a {type(first).__name__}"
        raise SourceError(f"{path} begins with {what}; expected objects. {_known()}")
    raise SourceError(
        f"the first entry of {path} has the keys {', '.join(map(repr, first)) or 'none'}, "
        f"of no format that is known. {_known()}"
    )


def _is_empty(name: str, files: tuple[Path, ...]) -> bool:
    if name in ("llava", "messages"):
        return next(iter_entries(files[0]), None) is None
    return name in ("parquet", "hf") and not any(map(holds_rows, files))


def _no_entry(path: Path) -> str:
    return f"{path} holds no entry; expected at least one"


def _format_of(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return None
    turns = entry.get("messages") or entry.get("conversations")
    first = turns[0] if isinstance(turns, list) and turns else None
    if not isinstance(first, dict) or not first.keys() & {"role", "from"}:
        return None
    return "messages" if "role" in first or "messages" in entry else "llava"


def _named(data_dir: Path, file: Path) -> Path:
    return next((path for path in (file, data_dir / file) if path.exists()), file)


def _known() -> str:
    listed = "; ".join(f"{name}: {one.looks}" for name, one in FORMATS.items())
    return f"Known are {listed}. --format NAME decides where the content is unclear"
