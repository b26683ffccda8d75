"""COCO, NoCaps and Flickr30k captions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dct_vl.evaluation.tasks.files import (
    ImageFolder,
    ReadOptions,
    TaskDataError,
    entries,
    find_file,
    read_json,
    read_rows,
    row_image,
    value,
)
from dct_vl.evaluation.tasks.task import TaskItem, user_turn

#: lmms-eval's words, so that scores compare
PROMPT = "Provide a one-sentence caption for the provided image."
_MAX_NEW_TOKENS = 64


def read_coco(path: Path, options: ReadOptions) -> Iterator[TaskItem]:
    """COCO's captions JSON (``images`` and ``annotations``), which NoCaps has too.

    An image's ``domain`` (NoCaps) is its group. A folder with Karpathy's ``dataset_coco.json`` is
    read by his test split.
    """
    patterns = ("*captions*.json", "coco_karpathy_*_gt.json")
    file = find_file(path, patterns, options.split)
    if file is None and find_file(path, ("dataset_coco.json",)) is not None:
        yield from read_karpathy(path, options)
        return
    if file is None:
        names = ("coco", "COCO-Caption", "coco_cap", "COCO-Caption2017", "nocaps")
        splits = ("validation", "val", "test")
        yield from (item for _, item in _items_of_rows(path, options, names, splits))
        return
    data = read_json(file)
    captions: dict[Any, list[str]] = defaultdict(list)
    for annotation in entries(data, "annotations", file):
        captions[value(annotation, ("image_id",), file)].append(
            str(value(annotation, ("caption",), file))
        )
    split = file.stem.removeprefix("captions_")
    folder = ImageFolder(path, options, split, "images", "val2014", "val2017", "val", "test")
    for image in entries(data, "images", file):
        name = str(value(image, ("file_name",), file))
        yield TaskItem(
            key=str(value(image, ("id",), file)),
            turns=user_turn(PROMPT),
            images=folder.find(name),
            references=tuple(captions[image["id"]]),
            max_new_tokens=_MAX_NEW_TOKENS,
            group=str(image.get("domain", "")),
        )


def read_karpathy(path: Path, options: ReadOptions) -> Iterator[TaskItem]:
    """Karpathy's JSON (``images`` with their ``sentences`` and ``split``); the test split."""
    file = find_file(path, ("dataset_flickr*.json", "dataset_coco*.json", "dataset.json"))
    if file is None:
        # rows of all images may say which of his splits they are of
        names, splits = ("flickr30k", "Flickr30k_test"), ("test", "validation", "val")
        for row, item in _items_of_rows(path, options, names, splits):
            if row.get("split") in (None, options.split or "test"):
                yield item
        return
    folder = ImageFolder(path, options, "images", "flickr30k-images", "flickr30k_images", "val2014")
    images = entries(read_json(file), "images", file)
    split = options.split or "test"
    chosen = [image for image in images if image.get("split") == split]
    if not chosen:
        found = sorted({str(image.get("split")) for image in images})
        raise TaskDataError(f"{file} has the splits {', '.join(found)}, and no {split}")
    for image in chosen:
        name = str(value(image, ("filename",), file))
        yield TaskItem(
            key=str(image.get("cocoid", image.get("imgid", name))),
            turns=user_turn(PROMPT),
            images=folder.find(name, f"{image.get('filepath', '')}/{name}"),
            references=tuple(
                str(value(s, ("raw",), file)) for s in entries(image, "sentences", file)
            ),
            max_new_tokens=_MAX_NEW_TOKENS,
        )


def _items_of_rows(
    path: Path, options: ReadOptions, names: tuple[str, ...], splits: tuple[str, ...]
) -> Iterator[tuple[dict[str, Any], TaskItem]]:
    for number, row in read_rows(path, options, names, splits):
        texts = value(row, ("annotations_captions", "captions", "answer", "caption"), path)
        item = TaskItem(
            key=str(value({**row, "number": number}, ("image_id", "img_id", "id", "number"), path)),
            turns=user_turn(PROMPT),
            images=row_image(row),
            references=(texts,) if isinstance(texts, str) else tuple(texts),
            max_new_tokens=_MAX_NEW_TOKENS,
        )
        yield row, item
