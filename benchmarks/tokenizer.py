"""CPU preparation of a picture against transformers' processor, front end against PatchEmbed.

    python benchmarks/tokenizer.py [--quick] [--json FILE] [--photos FOLDER]

CPU part, one core: from JPEG bytes to what the loader ships. The peer is Qwen2VLImageProcessor of
the installed transformers (Pillow decode, as its users call it). Ours decodes with simplejpeg. The
"presized" rows start from JPEGs already at the planned size, as `data_prep --presize` stores them.
A front end folded into one convolution is timed against the front end. Processor time of one thread
is taken, so that other work on the machine does not count.

GPU part, where CUDA is there: cells or patches in pinned memory, over the bus, through the first
layer, in bf16. Without a GPU it is left out and said so. CUDA events time it; bytes moved count.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import simplejpeg
import torch
import transformers
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images
from transformers import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchEmbed

from dct_tokenizer import VisualTokenizer, build_tokenizer, fold
from dct_tokenizer.conformance.inputs import natural_image

MIN_PIXELS, MAX_PIXELS = 3136, 1_003_520
#: (height, width) of the pictures where no folder is given.
SIZES = ((400, 500), (375, 500), (500, 400), (480, 640))
EMBED_DIM = 1280
#: Pictures of 896 x 896 in a GPU batch.
GPU_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line of the table; for ratios `peer_value` is empty."""

    name: str
    value: float
    unit: str
    peer: str = ""
    peer_value: float | None = None


def jpeg(picture: np.ndarray) -> bytes:
    """JPEG of quality 90, 4:2:0, as most web photos are."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90)
    return file.getvalue()


def load_photos(folder: Path | None, count: int) -> list[bytes]:
    """JPEG bytes from a folder, or of the two photos that scikit-learn carries, resized."""
    if folder is None:
        sources = [Image.fromarray(photo) for photo in load_sample_images().images]
        pairs = [(sources[i % 2], SIZES[i // 2 % len(SIZES)]) for i in range(count)]
        return [jpeg(np.asarray(photo.resize(size[::-1]))) for photo, size in pairs]
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        raise SystemExit(f"{folder}: no .jpg files")
    return [jpeg(np.asarray(Image.open(f).convert("RGB"))) for f in files[:count]]


def decode(data: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(data, colorspace="RGB")


def prepare(tokenizer: VisualTokenizer, data: bytes) -> torch.Tensor:
    """JPEG bytes to uint8 cells."""
    frames = decode(data)[None]
    return tokenizer.cells(frames, tokenizer.plan(frames.shape[1], frames.shape[2]))


def presized(tokenizer: VisualTokenizer, data: bytes) -> bytes:
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    plan = tokenizer.plan(picture.height, picture.width)
    size = (plan.width, plan.height)
    return jpeg(np.asarray(picture.resize(size, Image.Resampling.BICUBIC)))


def rates(work: dict[str, tuple[Callable[[bytes], object], list[bytes]]], rounds: int):
    """Median pictures a second of each entry, all entries in turn within each round."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for index in range(rounds + 1):
        for name, (function, pictures) in work.items():
            begin = time.process_time()
            for data in pictures:
                function(data)
            if index:  # the first round warms up
                seconds[name].append((time.process_time() - begin) / len(pictures))
    return {name: 1 / statistics.median(values) for name, values in seconds.items()}


def cpu_results(photos: list[bytes], rounds: int) -> list[Result]:
    torch.set_num_threads(1)
    processor = Qwen2VLImageProcessor(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    pixel, double = (
        build_tokenizer(name, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
        for name in ("pixel", "dct28_420")
    )

    def peer(data: bytes) -> object:
        return processor(Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt")

    sized = {
        tokenizer.name: [presized(tokenizer, d) for d in photos] for tokenizer in (pixel, double)
    }
    rate = rates(
        {
            "peer": (peer, photos),
            "decode": (decode, photos),
            "pixel": (lambda data: prepare(pixel, data), photos),
            "dct28_420": (lambda data: prepare(double, data), photos),
            "pixel presized": (lambda data: prepare(pixel, data), sized["pixel"]),
            "dct28_420 presized": (lambda data: prepare(double, data), sized["dct28_420"]),
        },
        rounds,
    )
    label = f"Qwen2VLImageProcessor, transformers {transformers.__version__}"
    lines = [
        Result(name=f"prep_{name.replace(' ', '_')}", value=value, unit="img/s", peer=label,
               peer_value=rate["peer"])
        for name, value in rate.items()
        if name != "peer"
    ]  # fmt: skip
    weight = torch.randn(EMBED_DIM, 3, 2, 14, 14) * 0.02
    front_end = double.front_end(EMBED_DIM, weight)
    conv = fold(front_end, still=True)
    picture = decode(sized["dct28_420"][0])[None]
    cells = double.cells(picture, double.plan(*picture.shape[1:3]))
    image = torch.from_numpy(picture.copy()).permute(3, 0, 1, 2)[None].float()
    layers: dict[str, tuple[Callable[[bytes], object], list[bytes]]] = {
        "front_end": (lambda _: front_end(cells), [b""]),
        "folded": (lambda _: conv(image), [b""]),
    }
    with torch.no_grad():
        layer = rates(layers, rounds)
    lines.append(
        Result(
            name="folded_dct28_420_cpu",
            value=layer["folded"],
            unit="img/s",
            peer="the front end that it replaces",
            peer_value=layer["front_end"],
        )
    )
    ratios = {
        "prep_ratio": min(rate["pixel"], rate["dct28_420"]) / rate["peer"],
        "prep_presized_ratio": min(rate["pixel presized"], rate["dct28_420 presized"])
        / rate["peer"],
        "decode_limit_ratio": rate["decode"] / rate["peer"],
    }
    return lines + [Result(name=name, value=value, unit="x") for name, value in ratios.items()]


def gpu_seconds(step: Callable[[], object], rounds: int) -> float:
    """Median seconds of a step on the device."""
    times = []
    for index in range(rounds + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step()
        end.record()
        torch.cuda.synchronize()
        if index >= 3:
            times.append(begin.elapsed_time(end) / 1000)
    return statistics.median(times)


@torch.no_grad()
def gpu_results(rounds: int) -> list[Result]:
    picture = np.concatenate([natural_image(896, 896, seed=i)[None] for i in range(2)])
    peer = PatchEmbed(embed_dim=EMBED_DIM).cuda().bfloat16()
    stock = build_tokenizer("pixel")
    plan = stock.plan(896, 896)
    values = stock.encode(stock.cells(picture[:1], plan))
    patches = values.repeat(GPU_BATCH, 1).pin_memory()

    def peer_step() -> torch.Tensor:
        return peer(patches.cuda(non_blocking=True))

    results = []
    peer_rate = GPU_BATCH / gpu_seconds(peer_step, rounds)
    for name in ("pixel", "dct14", "dct28_420"):
        tokenizer = build_tokenizer(name)
        cells = tokenizer.cells(picture[:1], tokenizer.plan(896, 896))
        batch = cells.repeat(GPU_BATCH, 1, 1, 1, 1).pin_memory()
        front_end = tokenizer.front_end(EMBED_DIM, peer.proj.weight.cpu()).cuda().bfloat16()

        def step(batch=batch, front_end=front_end) -> torch.Tensor:
            return front_end(batch.cuda(non_blocking=True))

        rate = GPU_BATCH / gpu_seconds(step, rounds)
        peer_now = GPU_BATCH / gpu_seconds(peer_step, rounds)
        mean = statistics.mean((peer_rate, peer_now))
        label = f"PatchEmbed on float32 patches, {patches.nbytes / GPU_BATCH / 1e6:.1f} MB/img"
        results += [
            Result(name=f"front_end_{name}", value=rate, unit="img/s", peer=label, peer_value=mean),
            Result(name=f"front_end_{name}_ratio", value=rate / mean, unit="x"),
            Result(
                name=f"wire_{name}",
                value=batch.nbytes / GPU_BATCH / 1e6,
                unit="MB/img",
                peer=label,
                peer_value=patches.nbytes / GPU_BATCH / 1e6,
            ),
        ]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run, figures mean little")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--photos", type=Path, help="folder of JPEGs to measure on")
    arguments = parser.parse_args()
    rounds = 2 if arguments.quick else 7
    photos = load_photos(arguments.photos, 3 if arguments.quick else 16)
    results = cpu_results(photos, rounds)
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        results += gpu_results(rounds)

    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    table = Table("name", "ours", "unit", "peer", "its figure")
    for result in results:
        theirs = "" if result.peer_value is None else f"{result.peer_value:,.1f}"
        table.add_row(result.name, f"{result.value:,.2f}", result.unit, result.peer, theirs)
    console = Console(width=140)
    console.print(table)
    pixels = "photos of " + ("the folder" if arguments.photos else "187k to 307k pixels")
    console.print(f"{len(photos)} {pixels}, max_pixels {MAX_PIXELS:,}, {rounds} rounds, one core")
    if not has_gpu:
        console.print("no CUDA device: the front-end part was not measured")
    if arguments.json:
        content = {"machine": machine, "results": [asdict(result) for result in results]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
