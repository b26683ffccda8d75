"""Small raw datasets in the layout of Cambrian737k, made on the fly."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (64, 48), mode: str = "RGB") -> Image.Image:
    """A smooth random picture; ``size`` is (width, height)."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, fmt: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def jpeg(seed: int, size: tuple[int, int] = (64, 48)) -> bytes:
    return encoded(picture(seed, size), quality=90)


def conversation(question: str = "<image>\nWhat?", answer: str = "A dog.") -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def entry(entry_id, image=None, **conversation_args) -> dict:
    made = {"id": entry_id, "conversations": conversation(**conversation_args)}
    return made if image is None else made | {"image": image}


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_json(folder: Path, entries: list, name: str = "cambrian737k.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    return path


def write_plain_set(folder: Path, num_images: int) -> list[dict]:
    """One tar of sound JPEGs, one entry each."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"ai2d/images/{i}.jpg" for i in range(num_images)]
    write_tar(folder / "ai2d.tar", {name: jpeg(i) for i, name in enumerate(names)})
    entries = [entry(f"ai2d/{i}", name) for i, name in enumerate(names)]
    write_json(folder, entries)
    return entries


def read_shards(folder: Path) -> dict[str, dict[str, bytes]]:
    """Parts by key of all shards, in order."""
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("pretrain-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, part = member.name.partition(".")
                samples.setdefault(key, {})[part] = tar.extractfile(member).read()
    return samples


def output_bytes(folder: Path) -> dict[str, bytes]:
    """All that a run promises to make the same way every time."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
