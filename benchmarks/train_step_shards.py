"""Shards for `train_step.py --loader`: pictures of a web photo's weight and conversations.

The pictures' areas lie a little above what the step's picture has, so that each is decoded and
resized to it; the conversations have about as many text tokens as the step's rows.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.energon import prepare
from data_prep.executor import InProcessExecutor, ProcessExecutor
from data_prep.options import Options
from data_prep.progress import Reporter
from data_prep.run import Job, run

#: words of the chat template around a question and an answer, in tokens
_TEMPLATE_TOKENS = 24
_ASPECTS = (1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9)


def write_shards(
    folder: Path, *, num_samples: int, patches: int, text: int, num_workers: int
) -> Path:
    """Draw, prepare and split a dataset; one that was drawn alike is kept.

    Args:
        folder: of the dataset.
        num_samples: one picture each.
        patches: of 14 x 14 pixels that a picture comes to once its area is bounded by as many.
        text: tokens of a conversation, about.
        num_workers: processes.

    Returns:
        The prepared folder.

    Raises:
        ValueError: the folder holds one that was drawn otherwise.
    """
    raw, shards, note = folder / "raw", folder / "shards", folder / "drawn.json"
    wanted = {"num_samples": num_samples, "patches": patches, "text": text}
    if (shards / ".nv-meta" / "dataset.yaml").is_file():
        held = json.loads(note.read_text()) if note.is_file() else None
        if held != wanted:
            raise ValueError(
                f"{folder} holds shards drawn with {held or 'unknown numbers'}, this run wants "
                f"{wanted}: use another folder, or remove this one"
            )
        return shards
    raw.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(wanted))
    records = []
    draw = partial(draw_picture, patches=patches)
    with tarfile.open(raw / "photos.tar", "w") as tar:
        for number, data in enumerate(_pictures(draw, num_samples, num_workers)):
            member = tarfile.TarInfo(f"photos/{number:06d}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            records.append(make_record(number, member.name, text))
    (raw / "photos.json").write_text(json.dumps(records))
    engine = ProcessExecutor(num_workers) if num_workers > 1 else InProcessExecutor()
    options = Options(shard_size=max(1, num_samples // 20))
    run(Job(data_dir=raw, output_dir=shards, json=None, options=options), engine, Reporter())
    prepare(shards, "8,1,1", num_workers=num_workers)
    return shards


def _pictures(draw: partial[bytes], count: int, num_workers: int) -> Iterator[bytes]:
    if num_workers == 1:
        yield from map(draw, range(count))
        return
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(draw, range(count), chunksize=16)


def draw_picture(number: int, *, patches: int) -> bytes:
    """A JPEG with detail at all scales, as photos have, of 1.1 to 2 times the area."""
    generator = np.random.default_rng(number)
    area = 196 * patches * generator.uniform(1.1, 2.0)
    aspect = _ASPECTS[number % len(_ASPECTS)]
    width, height = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
    total = np.zeros((height, width, 3), dtype=np.float32)
    for cells, strength in ((4, 90.0), (16, 45.0), (64, 20.0)):
        noise = generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)
        total += (np.asarray(layer, dtype=np.float32) / 255 - 0.5) * strength * 2
    total += generator.normal(0, 6, total.shape).astype(np.float32)
    out = io.BytesIO()
    Image.fromarray((total + 128).clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=88)
    return out.getvalue()


def make_record(number: int, path: str, text: int) -> dict[str, object]:
    """A question and an answer out of words that become one token each."""
    chooser = random.Random(number)
    words = max(2, text - _TEMPLATE_TOKENS)

    def say(count: int) -> str:
        return " ".join(f"{chooser.choice(_STARTS)}{chooser.choice(_ENDS)}" for _ in range(count))

    asked = max(1, words // 4)
    turns = (("human", f"<image>\n{say(asked)}"), ("gpt", say(words - asked)))
    return {
        "id": str(number),
        "image": path,
        "conversations": [{"from": who, "value": value} for who, value in turns],
    }


_STARTS = ("ba", "co", "di", "fe", "gu", "ha", "jo", "ki", "lu", "me", "no", "pa", "ri", "so", "tu")
_ENDS = ("la", "men", "nor", "pis", "rat", "sil", "tor", "ven", "wick", "zon")
