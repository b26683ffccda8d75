"""Lines of ``quarantine.jsonl``: every entry that is not stored, and why."""

from collections import Counter
from pathlib import Path
from typing import Any

import orjson

from data_prep.locate import Location
from data_prep.reasons import Reason, Rejected


def reject_line(
    index: int, raw: Any, rejection: Rejected, location: Location | None = None
) -> bytes:
    """One line of JSON: index, id, image path(s), file and offset where known, reason, detail."""
    entry = raw if isinstance(raw, dict) else {}
    line = {
        "index": index,
        "id": _plain(entry.get("id")),
        "image": _plain(entry.get("image")),
        "source": location.source if location else None,
        "file": location.file if location else None,
        "offset": location.offset if location and location.offset >= 0 else None,
        "reason": rejection.reason.value,
        "detail": rejection.detail,
    }
    return orjson.dumps(line) + b"\n"


def quarantined_indices(path: Path) -> set[int]:
    """Indices of the entries in a quarantine file."""
    with path.open("rb") as lines:
        return {orjson.loads(line)["index"] for line in lines}


def missing_by_folder(path: Path) -> Counter[str]:
    """Entries whose image was not found, by the first folder of its path: often a tar's name."""
    folders: Counter[str] = Counter()
    with path.open("rb") as lines:
        for line in lines:
            reject = orjson.loads(line)
            if reject["reason"] == Reason.MISSING_IMAGE.value:
                image = reject["image"] if isinstance(reject["image"], str) else reject["image"][0]
                folders[image.removeprefix("./").partition("/")[0]] += 1
    return folders


def _plain(value: Any) -> Any:
    """Ids and image fields as they stand; whatever is no text or number as its repr."""
    if value is None or isinstance(value, str | float):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    return repr(value)[:200]
