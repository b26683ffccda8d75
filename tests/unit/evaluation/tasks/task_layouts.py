"""Tiny copies of benchmarks' own layouts."""

from __future__ import annotations

import io
import json
from pathlib import Path

import datasets
from PIL import Image

from dct_vl.evaluation.tasks.files import ReadOptions
from dct_vl.evaluation.tasks.registry import find_task
from dct_vl.evaluation.tasks.task import items_of

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def jpeg(level: int = 100) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 28), (level, 60, 90)).save(file, "JPEG")
    return file.getvalue()


def put(path: Path, content: object) -> Path:
    """Write bytes as they are, everything else as JSON; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def read(name: str, path: Path, **options):
    return items_of(find_task(name), path, ReadOptions(**options))


def rows_dataset(rows: list[dict]) -> datasets.Dataset:
    """Rows whose `image` is a level of grey, with the image feature that the hub's have."""
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    columns["image"] = [{"bytes": jpeg(level), "path": None} for level in columns["image"]]
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def one(items):
    assert len(items) == 1
    return items[0]
