"""A raw dataset of images, videos and text, some of it damaged, written on the fly."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sample_videos import FASTSTART, noise_frames, sound, video

ANSWER = "It is noise."
#: entries of a round of kinds, and how many of them are to be kept
NUM_KINDS, NUM_KEPT = 9, 6


def photo(seed: int, kind: str = "JPEG") -> bytes:
    """An image of 84 × 56 pixels."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (4, 6, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((84, 56), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


@cache
def media() -> dict[str, bytes]:
    """Files by path; those of ``clips`` go to a tar, the others to a folder. The same in a process:
    WebM holds a random number.
    """
    frames = noise_frames(24)
    mp4 = video(frames, options=FASTSTART)
    return {
        "clips/a.mp4": mp4,
        "clips/b.mp4": video(frames[::-1]),
        "clips/cut.mp4": mp4[: len(mp4) // 2],
        "films/c.webm": video(frames, container="webm", codec="libvpx"),
        "films/sound.mp4": sound(),
        **{f"films/{n}.jpg": photo(n) for n in range(4)},
        "films/4.png": photo(4, "PNG"),
    }


def entries(num_entries: int) -> Iterator[dict[str, Any]]:
    """LLaVA's: of every nine, six are sound."""
    for index in range(num_entries):
        image = f"films/{index % 5}.{'png' if index % 5 == 4 else 'jpg'}"
        kinds: list[tuple[str, dict[str, Any]]] = [
            ("<image>\nWhat?", {"image": image}),
            ("Which word?", {}),
            ("<video>\nWhat?", {"video": "clips/a.mp4"}),
            (
                "First <video>, then <image>, then <video>.",
                {"image": image, "video": ["clips/b.mp4", "films/c.webm"]},
            ),
            ("What?", {"video": "films/c.webm"}),
            ("<video>\nWhat?", {"video": "clips/cut.mp4"}),
            ("<video>\nWhat?", {"video": "films/sound.mp4"}),
            ("<video>\nWhat?", {"video": "clips/missing.mp4"}),
            ("<image><video>\nWhat?", {"image": [image], "video": ["clips/b.mp4"]}),
        ]
        question, fields = kinds[index % NUM_KINDS]
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": ANSWER}]
        yield {"id": f"mixed/{index}", **fields, "conversations": turns}


def as_messages(entry: dict[str, Any]) -> dict[str, Any]:
    """The same in OpenAI's words: one image as base64, one video as a part, others in lists."""
    images, videos = (
        value if isinstance(value, list) else [value] if value else []
        for value in (entry.get("image"), entry.get("video"))
    )
    question, answer = (turn["value"] for turn in entry["conversations"])
    content: Any = question
    if not videos and images:
        images = ["data:image/jpeg;base64," + base64.b64encode(media()[images[0]]).decode()]
    elif question.startswith("<video>"):
        content = [{"type": "video", "video": videos[0]}, {"type": "text", "text": "What?"}]
        videos = []
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    lists = {"images": images, "videos": videos}
    return {"id": entry["id"], "messages": messages, **{k: v for k, v in lists.items() if v}}


def write_mixed_set(folder: Path, num_entries: int, *, messages: bool = False) -> Path:
    """Write the media and a JSONL of their entries, LLaVA's or messages; returns the JSONL."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "clips.tar", "w") as tar:
        for path, data in media().items():
            if path.startswith("clips/"):
                info = tarfile.TarInfo(path)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            else:
                (folder / path).parent.mkdir(exist_ok=True)
                (folder / path).write_bytes(data)
    source = folder / "mixed.jsonl"
    said = map(as_messages, entries(num_entries)) if messages else entries(num_entries)
    source.write_text("".join(json.dumps(entry) + "\n" for entry in said))
    return source
