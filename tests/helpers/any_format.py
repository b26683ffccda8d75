"""The same conversations, written in every format that `data_prep convert` reads."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

PROMPT = "Describe this image."


@dataclass(frozen=True, kw_only=True)
class Talk:
    """A conversation in LLaVA's words, and its encoded images by path."""

    id: str
    conversations: list[dict[str, str]]
    images: dict[str, bytes]

    @property
    def llava(self) -> dict[str, Any]:
        paths = list(self.images)
        image = {"image": paths[0] if len(paths) == 1 else paths} if paths else {}
        return {"id": self.id, **image, "conversations": self.conversations}

    @property
    def messages(self) -> list[dict[str, str]]:
        roles = {"human": "user", "gpt": "assistant", "system": "system"}
        return [
            {"role": roles[turn["from"]], "content": turn["value"]} for turn in self.conversations
        ]

    @property
    def in_parts(self) -> list[dict[str, Any]]:
        """The messages with typed parts, whose images name their files."""
        paths = iter(self.images)
        messages = []
        for message in self.messages:
            parts: list[dict[str, Any]] = []
            for number, piece in enumerate(message["content"].split("<image>")):
                parts += [{"type": "image", "image": next(paths)}] if number else []
                text = piece.strip("\n")
                parts += [{"type": "text", "text": text}] if text else []
            messages.append({"role": message["role"], "content": parts})
        return messages


def drawn_talks(drawn: Path, number: int) -> list[Talk]:
    """Sound drawn conversations: with two images, with one, and none with more or fewer."""
    files: dict[str, bytes] = {}
    for path in drawn.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isfile():
                    files[member.name.removeprefix("./")] = tar.extractfile(member).read()
    entries = json.loads((drawn / "cambrian737k.json").read_text())
    talks = []
    for entry in entries:
        paths = entry.get("image") or []
        paths = paths if isinstance(paths, list) else [paths]
        found = {path: _find(files, path) for path in paths}
        if paths and all(data and data.endswith(b"\xff\xd9") for data in found.values()):
            talks.append(Talk(id=entry["id"], conversations=entry["conversations"], images=found))
    several = [talk for talk in talks if len(talk.images) > 1]
    single = [talk for talk in talks if len(talk.images) == 1]
    return [*several[:2], *single][:number]


def _find(files: dict[str, bytes], path: str) -> bytes | None:
    return files.get(path) or files.get(path.partition("/")[2])


def caption_of(talk: Talk) -> Talk:
    """A captioning conversation about the first image."""
    path, data = next(iter(talk.images.items()))
    turns = [
        {"from": "human", "value": f"<image>\n{PROMPT}"},
        {"from": "gpt", "value": talk.conversations[1]["value"]},
    ]
    return Talk(id=talk.id, conversations=turns, images={path: data})


def write_files(folder: Path, talks: list[Talk]) -> None:
    for talk in talks:
        for path, data in talk.images.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)


def write_llava(folder: Path, talks: list[Talk]) -> Path:
    write_files(folder, talks)
    (folder / "set.json").write_text(json.dumps([talk.llava for talk in talks]))
    return folder


def write_messages(folder: Path, talks: list[Talk]) -> Path:
    write_files(folder, talks)
    lines = [{"id": t.id, "messages": t.messages, "images": list(t.images)} for t in talks]
    return _write_lines(folder, lines)


def write_parts(folder: Path, talks: list[Talk]) -> Path:
    write_files(folder, talks)
    return _write_lines(folder, [{"key": t.id, "messages": t.in_parts} for t in talks])


def write_inline(folder: Path, talks: list[Talk]) -> Path:
    lines = []
    for talk in talks:
        urls = [
            "data:image/jpeg;base64," + base64.b64encode(data).decode()
            for data in talk.images.values()
        ]
        lines.append({"id": talk.id, "messages": talk.messages, "images": urls})
    return _write_lines(folder, lines)


def write_parquet(folder: Path, talks: list[Talk], *, struct: bool) -> Path:
    rows = [
        {
            "id": talk.id,
            "conversations": talk.conversations,
            "images": [
                {"bytes": data, "path": Path(path).name} if struct else data
                for path, data in talk.images.items()
            ],
        }
        for talk in talks
    ]
    # in row groups of five, as datasets has them of a hundred
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet", 5)
    return folder


def write_saved(folder: Path, talks: list[Talk]) -> Path:
    from datasets import Dataset, Features, Image, Sequence, Value

    rows = [
        {
            "id": talk.id,
            "messages": talk.messages,
            "images": [{"bytes": data, "path": None} for data in talk.images.values()],
        }
        for talk in talks
    ]
    features = Features(
        {
            "id": Value("string"),
            "messages": [{"role": Value("string"), "content": Value("string")}],
            "images": Sequence(Image()),
        }
    )
    Dataset.from_list(rows, features=features).save_to_disk(folder / "saved")
    return folder / "saved"


def write_folder(folder: Path, talks: list[Talk]) -> Path:
    for talk in talks:
        (data,) = talk.images.values()
        (folder / f"{talk.id}.jpg").write_bytes(data)
        (folder / f"{talk.id}.txt").write_text(talk.conversations[1]["value"])
    return folder


def write_webdataset(folder: Path, talks: list[Talk]) -> Path:
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, talk in enumerate(talks):
            (data,) = talk.images.values()
            caption = talk.conversations[1]["value"]
            described = {
                "url": f"https://a.b/{number}.jpg",
                "caption": caption,
                "status": "success",
            }
            parts = {"jpg": data, "txt": caption.encode(), "json": json.dumps(described).encode()}
            for part, content in parts.items():
                member = tarfile.TarInfo(f"{talk.id}.{part}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (folder / "00000_stats.json").write_text("{}")
    return folder


def _write_lines(folder: Path, lines: list[dict[str, Any]]) -> Path:
    (folder / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


#: writers of conversations, and of captions
CHATS: dict[str, Callable[[Path, list[Talk]], Path]] = {
    "llava": write_llava,
    "messages": write_messages,
    "parts": write_parts,
    "inline": write_inline,
    "parquet_bytes": lambda folder, talks: write_parquet(folder, talks, struct=False),
    "parquet_struct": lambda folder, talks: write_parquet(folder, talks, struct=True),
    "saved": write_saved,
}
CAPTIONS: dict[str, Callable[[Path, list[Talk]], Path]] = {
    "folder": write_folder,
    "webdataset": write_webdataset,
}
