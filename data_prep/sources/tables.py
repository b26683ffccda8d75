"""Rows of Parquet files and of the Arrow files that ``datasets`` saves, as entries.

Text columns go to `chats.read_chat` as an object's keys do. Bytes of images stay where they are:
the worker that makes the shard reads the row again (`table_cells.py`). They are spooled beside the
plan only where that would mean reading far more than the row: rows in another order, or a row group
of Parquet that is larger than `MAX_GROUP_BYTES`.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from data_prep.sources.chats import ID_KEYS, MEDIA_NAMES, has_roles, read_entry
from data_prep.sources.entry import Archives, Entry, Inline, Media, MediaKind, Refusal, Row, Source
from data_prep.sources.files import SourceError
from data_prep.sources.media_values import MEDIA_KEYS
from data_prep.sources.table_cells import (
    BATCH_ROWS,
    arrow_batches,
    open_parquet,
    read_schema,
    rows_with_sizes,
)

if TYPE_CHECKING:
    import pyarrow as pa

#: Uncompressed bytes of a column in a row group up to which its rows are read again.
MAX_GROUP_BYTES = 256 * 1024 * 1024
#: Columns that hold media where no option names them, beside those of entries in JSON.
_MEDIA_NAMES: dict[MediaKind, tuple[str, ...]] = {
    "image": (*MEDIA_KEYS["image"], "img", "jpg", "png", "picture", "image_bytes"),
    "video": (*MEDIA_KEYS["video"], "mp4", "video_bytes"),
}
_ENTRY_KEYS = ("image", "video", "conversations", "messages")
_SPLIT = re.compile(r"(train|validation|valid|val|test|dev)(?=[-_.]|$)")
_CAPTION_NAMES = ("caption", "text")
_QUESTION_NAMES, _ANSWER_NAMES = ("question", "query"), ("answer", "response")


def table_files(path: Path, format_name: str) -> list[Path]:
    """The files of a table, in order; SourceError where they are of several splits."""
    if path.is_file():
        return [path]
    if format_name == "hf":
        return _saved_files(path)
    files = sorted(path.rglob("*.parquet"))
    splits = {_split_of(file.relative_to(path)) for file in files}
    if len(splits) > 1:
        named = ", ".join(sorted(split or "none" for split in splits))
        raise SourceError(
            f"{path} holds Parquet files of several splits ({named}); give the files of one in a "
            "folder of their own, or one file"
        )
    return files


def read_tables(source: Source, archives: Archives) -> Iterator[Entry | Refusal]:
    """An entry a row, in order of the files and of their rows."""
    index = 0
    # columns are left out here; of the entry's keys that `_Layout` gives none is a column's name
    ignored = tuple(name for name in source.options.ignore if name not in _ENTRY_KEYS)
    of_rows = replace(source, options=replace(source.options, ignore=ignored))
    for path in source.files:
        layout = _Layout(source, path, read_schema(path))
        below = path.is_relative_to(source.data_dir)
        name = (path.relative_to(source.data_dir) if below else path.absolute()).as_posix()
        for first, batch, in_place, sizes in _batches(path, layout, source):
            held = layout.media - sizes.keys()
            rows = rows_with_sizes(batch, held) if in_place else batch.to_pylist()
            for number, row in enumerate(rows, start=first):
                for column, size in sizes.items():
                    row[column] = {"bytes": size, "path": (row.get(column) or {}).get("path")}
                raw = layout.entry(row, name, number, in_place=in_place)
                yield read_entry(of_rows, index, None, raw)
                index += 1


def describe_columns(source: Source) -> str:
    """Which columns are used and which are left out, for the user; SourceError as `read_tables`."""
    layout = _Layout(source, source.files[0], read_schema(source.files[0]))
    said = f"columns used: {', '.join(layout.used)}"
    return f"{said}; left out: {', '.join(layout.left_out)}" if layout.left_out else said


def _batches(
    path: Path, layout: "_Layout", source: Source
) -> Iterator[tuple[int, "pa.RecordBatch", bool, dict[str, int]]]:
    """Number of the first row, the rows, whether their bytes stay in the file, and the columns
    whose bytes were not read because each row is known to hold some, with about their mean size.
    """
    first = 0
    if path.suffix == ".arrow":
        for batch in arrow_batches(path):
            for start in range(0, batch.num_rows, BATCH_ROWS):
                part = batch.slice(start, BATCH_ROWS).select(layout.columns)
                yield first, part, True, {}
                first += part.num_rows
        return
    file = open_parquet(path)
    for group in range(file.num_row_groups):
        described = file.metadata.row_group(group)
        chunks = [described.column(number) for number in range(described.num_columns)]
        largest = max((chunk.total_uncompressed_size for chunk in chunks), default=0)
        in_place = source.in_order and largest <= MAX_GROUP_BYTES
        sizes: dict[str, int] = {}
        columns = list(layout.columns)
        for chunk in chunks if in_place and not source.exact_sizes else ():
            name, dot, leaf = chunk.path_in_schema.partition(".")
            counted = chunk.statistics is not None and chunk.statistics.has_null_count
            whole = name in layout.images and leaf in ("", "bytes") and layout.holds_bytes(name)
            if whole and counted and not chunk.statistics.null_count:
                sizes[name] = chunk.total_uncompressed_size // max(described.num_rows, 1)
                columns.remove(name)
                columns += [f"{name}.path"] if dot else []
        for batch in file.iter_batches(
            BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False
        ):
            yield first, batch, in_place, sizes
            first += batch.num_rows


def _saved_files(folder: Path) -> list[Path]:
    """Files of a dataset that ``save_to_disk`` wrote."""
    state = folder / "state.json"
    if not state.is_file():
        raise SourceError(f"{folder} has no state.json; expected what datasets' save_to_disk wrote")
    fields = orjson.loads(state.read_bytes())
    if fields.get("_indices_data_files"):
        raise SourceError(f"{folder} is a selection of rows; save it after flatten_indices()")
    return [folder / one["filename"] for one in fields["_data_files"]]


def _split_of(path: Path) -> str:
    match = _SPLIT.match(path.name) or _SPLIT.match(path.parent.name)
    return match[1] if match else ""


class _Layout:
    """Which columns of a table hold what; SourceError where that is not clear."""

    def __init__(self, source: Source, path: Path, schema: "pa.Schema") -> None:
        self._source = source
        self._path = path
        self._schema = schema
        options = source.options
        self._media = {
            "image": self._media_columns("image", options.image_column),
            "video": self._media_columns("video", options.video_column),
        }
        used = {*self._media["image"], *self._media["video"]}
        self._check_unused(used)
        self._says = self._find_text()
        self.media = used
        self.images = self._media["image"]
        self.columns = [name for name in schema.names if name not in options.ignore]
        taken = {*used, *self._says, *ID_KEYS, "system"}
        self.used = [name for name in self.columns if name in taken]
        self.left_out = [name for name in schema.names if name not in self.used]

    def holds_bytes(self, name: str) -> bool:
        """Whether a column holds one image a row, as bytes or beside a path."""
        import pyarrow.types as types

        kind = self._schema.field(name).type
        if types.is_struct(kind):
            return [field.name for field in kind] == ["bytes", "path"]
        return types.is_binary(kind) or types.is_large_binary(kind)

    def entry(self, row: dict[str, Any], file: str, number: int, *, in_place: bool) -> Any:
        """The row as an object of `chats.read_entry`."""
        raw = dict(row)
        media: dict[str, list[Media]] = {}
        for kind, columns in self._media.items():
            found = [
                self._cell(kind, item, f"{column}/{place}", file, number, in_place)
                for column in columns
                for place, item in enumerate(_items(raw.pop(column)))
            ]
            media |= {kind: [one for one in found if one is not None]} if found else {}
        return self._say(raw) | media

    def _cell(
        self, kind: Any, item: Any, column: str, file: str, number: int, in_place: bool
    ) -> Any:
        """Media whose bytes are in the table; a path or null as it stands."""
        data, path = (item.get("bytes"), item.get("path")) if isinstance(item, dict) else (item, "")
        if not isinstance(data, bytes | int):
            return item if data or path or not isinstance(item, dict) else None
        held: Row | Inline
        if in_place:
            size = data if isinstance(data, int) else len(data)
            held = Row(file=file, number=number, column=column, size=size)
        else:
            assert isinstance(data, bytes), "sizes stand for bytes only where those stay in place"
            held = Inline(file=file, data=data)
        return Media(kind=kind, path=path or f"{file}#{number}", held=held)

    def _say(self, raw: dict[str, Any]) -> dict[str, Any]:
        ask, answer = self._says
        said = raw.pop(answer)
        if ask is None:
            if isinstance(said, str):
                said = _parsed(said)
            if _is_struct_of_lists(said):
                turns = zip(*said.values(), strict=True)
                said = [dict(zip(said, turn, strict=True)) for turn in turns]
            if isinstance(said, list) and said and _is_pair(said[0]):
                said = [turn for pair in said for turn in _turns(pair["user"], pair["assistant"])]
            key = "messages" if has_roles(said) else "conversations"
            return raw | {key: said}
        question = raw.pop(ask) if ask else self._source.options.caption_prompt
        return raw | {"conversations": _turns(question, said)}

    def _media_columns(self, kind: MediaKind, named: tuple[str, ...]) -> tuple[str, ...]:
        for name in named:
            self._require(name, f"--{kind}-column")
        if named:
            return named
        found = [n for n in self._schema.names if n.lower() in _MEDIA_NAMES[kind]]
        return tuple(name for name in found if name not in self._source.options.ignore)

    def _find_text(self) -> tuple[str | None, str]:
        """Columns of question and answer: (None, conversation), ("", caption) or both."""
        options = self._source.options
        names = [name for name in self._schema.names if name not in options.ignore]
        for option, first in (
            ("conversations_column", None),
            ("text_column", ""),
        ):
            if (name := getattr(options, option)) is not None:
                self._require(name, f"--{option.replace('_', '-')}")
                return first, name
        found = next((n for n in ("messages", "conversations", "texts") if n in names), None)
        asked = (options.question_column, options.answer_column)
        if found is not None and asked == (None, None):
            return None, found
        question = options.question_column or _first(_QUESTION_NAMES, names)
        answer = options.answer_column or _first(_ANSWER_NAMES, names)
        if question is not None and answer is not None:
            self._require(question, "--question-column")
            self._require(answer, "--answer-column")
            self._check_text(question, options.question_column, "--question-column")
            self._check_text(answer, options.answer_column, "--answer-column")
            return question, answer
        caption = _first(_CAPTION_NAMES, names)
        if caption is None:
            raise SourceError(
                f"{self._path} has the columns {', '.join(self._schema.names)}; say which hold the "
                "text by --conversations-column, by --question-column and --answer-column, or, of "
                "captions, by --text-column"
            )
        self._check_text(caption, None, "--text-column")
        return "", caption

    def _check_text(self, name: str, named: str | None, option: str) -> None:
        """Refuse what was found by its name alone: an answer may be the number of a choice."""
        kind = self._schema.field(name).type
        held = kind.value_type if hasattr(kind, "index_type") else kind  # of categories
        if named is None and str(held) not in ("string", "large_string", "string_view", "null"):
            raise SourceError(
                f"{self._path} has a column {name} of {kind}; expected text: {option} {name} takes "
                f"it as it stands, {option} COLUMN another"
            )

    def _require(self, name: str, option: str) -> None:
        if name not in self._schema.names:
            raise SourceError(
                f"{option} is {name!r}; {self._path} has the columns "
                f"{', '.join(self._schema.names)}"
            )

    def _check_unused(self, used: set[str]) -> None:
        """A column of bytes that is not named may be images that would be lost."""
        import pyarrow.types as types

        for field in self._schema:
            kind = field.type
            while types.is_list(kind) or types.is_large_list(kind):
                kind = kind.value_type
            holds = (
                field.name in MEDIA_NAMES or types.is_binary(kind) or types.is_large_binary(kind)
            )
            if types.is_struct(kind):
                holds = any(kind.field(number).name == "bytes" for number in range(kind.num_fields))
            if holds and field.name not in used and field.name not in self._source.options.ignore:
                raise SourceError(
                    f"{self._path} may have media in the column {field.name}; --image-column or "
                    f"--video-column {field.name} stores them, --ignore {field.name} does not"
                )


def _items(cell: Any) -> list[Any]:
    return cell if isinstance(cell, list) else [cell]


def _first(names: tuple[str, ...], columns: list[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _turns(question: Any, answer: Any) -> list[dict[str, Any]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _is_struct_of_lists(said: Any) -> bool:
    """Older versions of datasets keep a list of structs so."""
    if not isinstance(said, dict) or not all(isinstance(one, list) for one in said.values()):
        return False
    return len(set(map(len, said.values()))) == 1


def _is_pair(item: Any) -> bool:
    return isinstance(item, dict) and {"user", "assistant"} <= item.keys()
