"""Write the drawn dataset: one JSON and one tar per source, the layout of Cambrian737k."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random

from data_prep.drawn.entries import Detail, Entry, Planted, draw_entry

JSON_NAME = "cambrian737k.json"
#: One truncated, one rotated and at least one missing image, and something usable besides.
MIN_ENTRIES = 8
MISSING_PER_ENTRIES = 100
MIN_IMAGE_SIZE = 112
ENTRIES_PER_TASK = 50


@dataclass(frozen=True, kw_only=True)
class DrawnSummary:
    """Counts of what was written, planted defects included."""

    #: Elements of the JSON.
    num_entries: int
    #: Entries that a correct preparation keeps: all but the planted missing and truncated ones.
    num_usable: int
    #: Question–answer pairs of all entries.
    num_turns: int
    #: Entries by kind of image, "text" included.
    by_kind: dict[str, int]
    #: Files by tar. A planted missing image is in none.
    by_source: dict[str, int]
    #: Entries by file format of their images; text entries are not counted.
    by_format: dict[str, int]
    #: Ids of the entries planted with each of: missing, truncated, rotated.
    planted: dict[str, tuple[str, ...]]


def write_drawn_dataset(
    folder: str | Path,
    *,
    num_entries: int,
    seed: int = 0,
    image_size: int = 168,
    detail: Detail = "coarse",
    plant_defects: bool = True,
    num_workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> DrawnSummary:
    """Draw ``num_entries`` entries into ``folder``: cambrian737k.json and one tar per source.

    The bytes depend on the arguments alone (and on Pillow's version). Every kind of entry is
    spread evenly over the JSON, so any split by position has the same distribution.

    image_size: shorter side in pixels; images are square, 4:3, or up to 9 pixels off a square.
        168 = 3 × 56 keeps all of them within 43,904 pixels.
    detail: "coarse" asks about large shapes and print, "fine" about details of 1 to 7 pixels,
        "numbers" has pages of small print and hatching, "lessons" also pages of one frame and few.
    plant_defects: one truncated JPEG, one JPEG with an EXIF orientation, and one entry in 100
        whose image is in no tar.
    num_workers: processes that draw; the files are the same for any number.
    progress: called with the number of entries done, after each entry.

    Raises ValueError where ``num_entries`` or ``image_size`` is too small.
    """
    if num_entries < MIN_ENTRIES:
        raise ValueError(
            f"num_entries is {num_entries}: at least {MIN_ENTRIES} are needed to hold the planted "
            "defects and something usable"
        )
    if image_size < MIN_IMAGE_SIZE:
        raise ValueError(
            f"image_size is {image_size}: below {MIN_IMAGE_SIZE} pixels the words and numbers "
            "cannot be read; 168 is the usual size"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    planted = _plant(seed, num_entries) if plant_defects else {}
    records = []
    by_kind: Counter[str] = Counter()
    by_source: Counter[str] = Counter()
    by_format: Counter[str] = Counter()
    planted_ids: dict[str, list[str]] = {"missing": [], "truncated": [], "rotated": []}
    num_turns = 0
    # The JSON is written last: a folder without it is a drawing that was interrupted.
    (folder / JSON_NAME).unlink(missing_ok=True)
    with ExitStack() as stack:
        tars: dict[str, tarfile.TarFile] = {}
        draw = partial(draw_entry, seed, image_size=image_size, detail=detail)
        for index, entry in enumerate(_drawn(draw, planted, num_entries, num_workers)):
            defect = planted.get(index)
            records.append(entry.record)
            for path, data in entry.files.items():
                source = path.split("/", 1)[0]
                if source not in tars:
                    tars[source] = stack.enter_context(
                        tarfile.open(folder / f"{source}.tar", "w", format=tarfile.USTAR_FORMAT)
                    )
                _add(tars[source], path, data)
                by_source[source] += 1
            by_kind[entry.kind] += 1
            num_turns += entry.num_turns
            if entry.image_format is not None:
                by_format[entry.image_format] += 1
            if defect is not None:
                planted_ids[defect].append(entry.record["id"])
            if progress is not None:
                progress(index + 1)
    text = json.dumps(records, indent=1, ensure_ascii=False)
    (folder / JSON_NAME).write_text(text, encoding="utf-8")
    return DrawnSummary(
        num_entries=num_entries,
        num_usable=num_entries - len(planted_ids["missing"]) - len(planted_ids["truncated"]),
        num_turns=num_turns,
        by_kind=dict(sorted(by_kind.items())),
        by_source=dict(sorted(by_source.items())),
        by_format=dict(sorted(by_format.items())),
        planted={name: tuple(ids) for name, ids in planted_ids.items()},
    )


def _drawn(
    draw: Callable[..., Entry], planted: dict[int, Planted], num_entries: int, num_workers: int
) -> Iterator[Entry]:
    task = partial(_draw_one, draw, planted)
    if num_workers == 1:
        yield from map(task, range(num_entries))
        return
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        # in rounds, so that finished entries do not pile up while their tars are written
        per_round = ENTRIES_PER_TASK * num_workers * 4
        for start in range(0, num_entries, per_round):
            indices = range(start, min(start + per_round, num_entries))
            yield from pool.map(task, indices, chunksize=ENTRIES_PER_TASK)


def _draw_one(draw: Callable[..., Entry], planted: dict[int, Planted], index: int) -> Entry:
    return draw(index, planted=planted.get(index))


def _plant(seed: int, num_entries: int) -> dict[int, Planted]:
    num_missing = max(1, num_entries // MISSING_PER_ENTRIES)
    rotated, truncated, *missing = Random(f"{seed}/planted").sample(
        range(num_entries), 2 + num_missing
    )
    return {
        rotated: "rotated",
        truncated: "truncated",
        **dict.fromkeys(missing, "missing"),
    }


def _add(tar: tarfile.TarFile, path: str, data: bytes) -> None:
    member = tarfile.TarInfo(path)
    member.size = len(data)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(data))
