"""Find and read a benchmark's data under the folder that a user names.

Rows are those of a Hugging Face dataset on disk, in any form: a parquet or arrow file; a folder of
`save_to_disk`; a folder of a hub repository (``data/test-00000-of-00001.parquet``); one of the
hub's or the datasets library's cache; or a folder that holds one such folder for each benchmark, as
the ``lmmseval`` folder of Cambrian737k does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson


class TaskDataError(ValueError):
    """Data that is not what the task reads; the message says what was expected and where."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What of a benchmark's data is read."""

    #: part of the data, in the benchmark's own words; None takes the one that the task is about
    split: str | None = None
    #: False leaves the images out, which scoring does not need
    images: bool = True


def find_file(root: Path, patterns: Sequence[str], split: str | None = None) -> Path | None:
    """The file itself, or the only one under it with such a name; None where there is none.

    A file that is named itself needs only the right ending. Of several, those with `split` in
    their name count.

    Raises:
        TaskDataError: several are left.
    """
    if root.is_file():
        return root if root.suffix in {Path(pattern).suffix for pattern in patterns} else None
    found = sorted({path for pattern in patterns for path in root.rglob(pattern)})
    if split is not None:
        found = [path for path in found if split in path.name]
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in found[:6])
        raise TaskDataError(f"{root} holds {names}; name one of them, or a split")
    return found[0] if found else None


def read_json(path: Path) -> Any:
    """Content of a JSON file; a TaskDataError where it is none."""
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise TaskDataError(f"{path} is no JSON: {error}") from error


def entries(data: Any, name: str, path: Path) -> list[dict[str, Any]]:
    """The list of objects under a name of a JSON file; a TaskDataError where there is none."""
    found = data.get(name) if isinstance(data, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        has = ", ".join(data) if isinstance(data, dict) else f"a {type(data).__name__}"
        raise TaskDataError(f'{path} holds {has}; expected an object with a list "{name}"')
    return found


def value(entry: dict[str, Any], names: Sequence[str], where: object) -> Any:
    """The first of several names that an entry has; a TaskDataError where it has none of them."""
    for name in names:
        if entry.get(name) is not None:
            return entry[name]
    raise TaskDataError(
        f"{where}: an entry has {', '.join(map(str, entry))}; expected {' or '.join(names)}"
    )


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, object) of each line with text; a TaskDataError where it is no object."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                entry = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise TaskDataError(f"{path}, line {number} is no JSON: {error}") from error
            if not isinstance(entry, dict):
                raise TaskDataError(f"{path}, line {number} is no object")
            yield number, entry


class ImageFolder:
    """Images that a benchmark's files name, in one of the folders where people keep them.

    Args:
        root: the benchmark's folder, or a file in it.
        options: whether images are looked for.
        folders: tried under `root` and under the folders above it, two levels up.
    """

    def __init__(self, root: Path, options: ReadOptions, *folders: str) -> None:
        self._wanted = options.images
        start = root if root.is_dir() else root.parent
        self._found_one = False
        bases = [start, *list(start.resolve().parents)[:2]]
        self._folders = [base / folder for base in bases for folder in (*folders, ".")]

    def find(self, *names: str) -> tuple[Path, ...]:
        """The first of the names that is there, alone in a tuple; () where none is wanted.

        Where none is, though others were: the path where it should be, so that one lost image costs
        its own question and not those behind it; reading it says that it is not there.

        Raises:
            TaskDataError: none is, and none was before: these are not the images.
        """
        if not self._wanted:
            return ()
        for folder in self._folders:
            for name in names:
                if (path := folder / name).is_file():
                    self._found_one = True
                    # the next ones lie there too
                    self._folders.remove(folder)
                    self._folders.insert(0, folder)
                    return (path,)
        if self._found_one:
            return (self._folders[0] / names[0],)
        looked = ", ".join(str(folder) for folder in self._folders[:4])
        raise TaskDataError(f"image {names[0]} is in none of {looked}, …")


#: bounds the memory that images take: an arrow file's own batches hold 1,000 rows
_ROWS_AT_ONCE = 32
_SPLIT = r"(train|test|validation|val|dev|testdev)"
#: val-00000-of-00002.parquet, ai2d-test.arrow, ai2d-test-00000-of-00002.arrow, test.parquet
_SPLIT_IN_NAME = re.compile(rf"(?:^|[-_.]){_SPLIT}(?=[-_.]|$)")


def read_rows(
    path: Path, options: ReadOptions, names: Sequence[str], splits: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, row) of a split; an image is a dict with "bytes" and "path", left out on request.

    Args:
        path: one of the forms above.
        options: a split instead of `splits`, and whether image columns are read.
        names: of the benchmark's folder, where `path` holds several.
        splits: names by preference; the first that is there is read. A dataset whose files name
            no split is read whole.

    Raises:
        TaskDataError: nothing there, or none of the splits.
    """
    root = _find_benchmark(path, {_plain(name) for name in names})
    if not has_rows(root):
        raise TaskDataError(
            f"{path} has neither files of {names[0]}'s own nor a Hugging Face dataset of it"
        )
    wanted = (options.split,) if options.split else splits
    saved = _saved_dataset(root)
    read = _from_disk if saved else _from_files
    yield from enumerate(read(saved or root, wanted, options.images))


def has_rows(root: Path) -> bool:
    """Whether there are parquet or arrow files."""
    if root.is_file():
        return root.suffix in (".parquet", ".arrow")
    return any(next(root.rglob(f"*{suffix}"), None) for suffix in (".parquet", ".arrow"))


def row_image(row: dict[str, Any]) -> tuple[bytes, ...]:
    """The row's image, as encoded bytes; () where it was left out.

    Raises:
        TaskDataError: the row names a file elsewhere instead of holding the image.
    """
    content = row.get("image")
    if isinstance(content, bytes):
        return (content,)
    if not isinstance(content, dict):
        return ()
    if content.get("bytes"):
        return (content["bytes"],)
    if content.get("path") and Path(content["path"]).is_file():
        return (Path(content["path"]).read_bytes(),)
    raise TaskDataError(f"the image of a row is the path {content.get('path')}, not there")


def _find_benchmark(root: Path, names: set[str]) -> Path:
    """The benchmark's own folder where `root` holds several, else `root`.

    The cache's prefixes do not count: ``lmms-lab___ai2d`` and ``datasets--lmms-lab--ai2d`` are
    ``ai2d``. A folder of the name in one of the name is looked into as well: the hub's ``DocVQA``
    holds ``DocVQA`` and ``InfographicVQA``.
    """
    if root.is_file():
        return root
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if _plain(re.split("___|--", folder.name)[-1]) in names:
            return _find_benchmark(folder, names)
    return root


def _plain(name: str) -> str:
    return re.sub("[-_. ]", "", name.lower())


def _saved_dataset(root: Path) -> Path | None:
    """The folder that `save_to_disk` wrote, with the splits beside each other where several."""
    if root.is_file():
        return None
    for name in ("dataset_dict.json", "state.json"):
        if found := sorted(root.rglob(name)):
            return found[0].parent
    return None


def _choose(found: Sequence[str], wanted: Sequence[str], root: Path) -> str:
    for name in wanted:
        if name in found:
            return name
    raise TaskDataError(f"{root} has the splits {', '.join(found)}; expected {' or '.join(wanted)}")


def _from_disk(folder: Path, splits: Sequence[str], images: bool) -> Iterator[dict[str, Any]]:
    import datasets

    loaded = datasets.load_from_disk(str(folder))
    if isinstance(loaded, datasets.DatasetDict):
        loaded = loaded[_choose(list(loaded), splits, folder)]
    for name, feature in list(loaded.features.items()):
        if not isinstance(feature, datasets.Image):
            continue
        if images:
            loaded = loaded.cast_column(name, datasets.Image(decode=False))
        else:
            loaded = loaded.remove_columns(name)
    yield from loaded


def _from_files(root: Path, splits: Sequence[str], images: bool) -> Iterator[dict[str, Any]]:
    if root.is_file():
        files = [root]
    else:
        files = sorted(root.rglob("*.parquet")) or sorted(root.rglob("*.arrow"))
        files = _of_split(files, splits, root)
    for file in files:
        for batch in _batches(file):
            keep = [name for name in batch.schema.names if images or not _is_image(batch, name)]
            for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                yield from batch.select(keep).slice(start, _ROWS_AT_ONCE).to_pylist()


def _of_split(files: list[Path], splits: Sequence[str], root: Path) -> list[Path]:
    by_split: dict[str, list[Path]] = {}
    for file in files:
        found = _SPLIT_IN_NAME.findall(file.stem) or _SPLIT_IN_NAME.findall(file.parent.name)
        by_split.setdefault(found[-1] if found else "", []).append(file)
    if list(by_split) == [""]:
        return files
    return by_split[_choose(list(by_split), splits, root)]


def _batches(file: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if file.suffix == ".parquet":
            yield from pq.ParquetFile(file).iter_batches(_ROWS_AT_ONCE)
        else:
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
                yield from reader
    except (pa.ArrowInvalid, OSError) as error:
        raise TaskDataError(f"{file} cannot be read: {error}") from error


def _is_image(batch: Any, name: str) -> bool:
    import pyarrow as pa

    kind = batch.schema.field(name).type
    return pa.types.is_binary(kind) or (
        pa.types.is_struct(kind) and {"bytes", "path"} == {field.name for field in kind}
    )
