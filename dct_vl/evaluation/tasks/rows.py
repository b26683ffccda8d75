"""Rows of a Hugging Face dataset on disk, in any of the forms that people have it.

A parquet or arrow file; a folder of `save_to_disk`; a folder of a hub repository (``data/
test-00000-of-00001.parquet``); one of the hub's or the datasets library's cache; or a folder that
holds one such folder for each benchmark, as the ``lmmseval`` folder of Cambrian737k does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dct_vl.evaluation.tasks.files import TaskDataError

#: bounds the memory that pictures take: an arrow file's own batches hold 1,000 rows
_ROWS_AT_ONCE = 32
_SPLIT = r"(train|test|validation|val|dev|testdev)"
#: val-00000-of-00002.parquet, ai2d-test.arrow, ai2d-test-00000-of-00002.arrow, test.parquet
_SPLIT_IN_NAME = re.compile(rf"(?:^|[-_.]){_SPLIT}(?=[-_.]|$)")


def find_benchmark(root: Path, names: Sequence[str]) -> Path:
    """The benchmark's own folder where `root` holds several, else `root`.

    The cache's prefixes do not count: ``lmms-lab___ai2d`` and ``datasets--lmms-lab--ai2d`` are
    ``ai2d``. A folder of the name in one of the name is looked into as well: the hub's ``DocVQA``
    holds ``DocVQA`` and ``InfographicVQA``.
    """
    if root.is_file():
        return root
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if _plain(re.split("___|--", folder.name)[-1]) in {_plain(name) for name in names}:
            return find_benchmark(folder, names)
    return root


def has_rows(root: Path) -> bool:
    """Whether there are parquet or arrow files."""
    if root.is_file():
        return root.suffix in (".parquet", ".arrow")
    return any(next(root.rglob(f"*{suffix}"), None) for suffix in (".parquet", ".arrow"))


def read_rows(
    root: Path, splits: Sequence[str], *, images: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, row) of a split; an image is a dict with "bytes" and "path", left out on request.

    Args:
        root: one of the forms above.
        splits: names by preference; the first that is there is read. A dataset whose files name
            no split is read whole.
        images: whether image columns are read.

    Raises:
        TaskDataError: nothing there, or none of the splits.
    """
    place = _saved_dataset(root)
    batches = _from_disk(place, splits, images) if place else _from_files(root, splits, images)
    yield from enumerate(batches)


def picture(row: dict[str, Any], names: Sequence[str] = ("image",)) -> tuple[bytes, ...]:
    """The row's image, as encoded bytes; () where it was left out.

    Raises:
        TaskDataError: the row names a file elsewhere instead of holding the image.
    """
    for name in names:
        content = row.get(name)
        if isinstance(content, bytes):
            return (content,)
        if isinstance(content, dict):
            if content.get("bytes"):
                return (content["bytes"],)
            if content.get("path") and Path(content["path"]).is_file():
                return (Path(content["path"]).read_bytes(),)
            raise TaskDataError(f"the image of a row is the path {content.get('path')}, not there")
    return ()


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


def _from_disk(place: Path, splits: Sequence[str], images: bool) -> Iterator[dict[str, Any]]:
    import datasets

    loaded = datasets.load_from_disk(str(place))
    if isinstance(loaded, datasets.DatasetDict):
        loaded = loaded[_choose(list(loaded), splits, place)]
    for name, feature in list(loaded.features.items()):
        if isinstance(feature, datasets.Image):
            loaded = (
                loaded.cast_column(name, datasets.Image(decode=False))
                if images
                else loaded.remove_columns(name)
            )
    yield from loaded


def _from_files(root: Path, splits: Sequence[str], images: bool) -> Iterator[dict[str, Any]]:
    if root.is_file():
        files = [root]
    else:
        files = sorted(root.rglob("*.parquet")) or sorted(root.rglob("*.arrow"))
        if not files:
            raise TaskDataError(f"{root} has no parquet or arrow file and no saved dataset")
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
