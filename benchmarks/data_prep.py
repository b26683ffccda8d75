"""Preparing raw images for training: ours against the algorithm that it replaces.

    python benchmarks/data_prep.py [--quick] [--json FILE] [--only PART]

The peer is written from its description: read the whole JSON, keep entries whose file exists in
the extracted folder, then for each one decode with Pillow, convert to RGB, encode as JPEG, and hand
it to webdataset's ShardWriter; one process. Extraction, which it needs and we do not, is not timed.
Every measurement runs in a process of its own, ours and the peer's in turn, several rounds; the
figures are medians. Times cover all work on an empty output folder: index, plan, shards, fsync.
"""

import argparse
import io
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# this script has the name of the package that it measures
sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from data_prep.executor import InProcessExecutor, ProcessExecutor  # noqa: E402
from data_prep.options import Options  # noqa: E402
from data_prep.progress import Reporter  # noqa: E402
from data_prep.run import Job, run  # noqa: E402

PHOTO_SIZE = (640, 480)  # 307,200 pixels
NUM_DISTINCT = 50
CONVERSATION = [
    {"from": "human", "value": "<image>\nWhat is shown here? Answer in one sentence."},
    {"from": "gpt", "value": "A generated picture, smooth in some places and rough in others."},
]


# --- sources ---------------------------------------------------------------------------------


def photo(seed: int) -> Image.Image:
    """Smooth areas, edges and grain: about 90 KB as JPEG of quality 90."""
    rng = np.random.default_rng(seed)
    width, height = PHOTO_SIZE
    layers = np.zeros((height, width, 3))
    for cells, weight in ((4, 1.0), (16, 0.6), (80, 0.35)):
        small = rng.integers(0, 255, (cells * 3 // 4, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(small).resize(PHOTO_SIZE, Image.Resampling.BICUBIC)
        layers += weight * (np.asarray(layer) - 127.0)
    grain = rng.normal(0, 5.5, (height, width, 1))
    return Image.fromarray(np.clip(layers * 0.6 + grain + 127, 0, 255).astype(np.uint8))


def chart(seed: int) -> Image.Image:
    """Flat bars, lines and labels on white."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", PHOTO_SIZE, "white")
    draw = ImageDraw.Draw(image)
    for bar in range(12):
        top = int(rng.integers(60, 420))
        color = tuple(int(c) for c in rng.integers(0, 255, 3))
        draw.rectangle((40 + bar * 48, top, 76 + bar * 48, 440), fill=color, outline="black")
        draw.text((44 + bar * 48, top - 14), str(440 - top), fill="black")
    for line in range(0, 440, 40):
        draw.line((30, line, 630, line), fill="lightgrey")
    return image


def encoded(image: Image.Image, fmt: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def distinct_files(kind: str) -> list[tuple[str, bytes]]:
    """Extension and bytes of the images that a source repeats."""
    if kind == "png":
        return [("png", encoded(chart(i), "PNG")) for i in range(NUM_DISTINCT)]
    # of ten web photos about six are 4:2:0, three 4:4:4 and one progressive
    ways: list[dict[str, Any]] = [{"quality": 90}] * 6
    ways += [{"quality": 86, "subsampling": 0}] * 3 + [{"quality": 90, "progressive": True}]
    return [("jpg", encoded(photo(i), "JPEG", **ways[i % 10])) for i in range(NUM_DISTINCT)]


def write_source(folder: Path, kind: str, num_images: int, entries_per_image: int = 1) -> None:
    """``<kind>.tar`` with its JSON, and under ``extracted`` what the peer needs."""
    folder.mkdir(parents=True)
    extracted = folder / "extracted"
    (extracted / kind).mkdir(parents=True)
    files = distinct_files(kind)
    entries = []
    with tarfile.open(folder / f"{kind}.tar", "w") as tar:
        for i in range(num_images):
            suffix, data = files[i % len(files)]
            name = f"{kind}/{i}.{suffix}"
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            (extracted / name).write_bytes(data)
            entries += [{"id": i, "image": name, "conversations": CONVERSATION}] * entries_per_image
    (folder / "entries.json").write_text(json.dumps(entries))


def as_messages(entry: dict[str, Any]) -> dict[str, Any]:
    """A LLaVA entry in the words of chat APIs."""
    roles = {"human": "user", "gpt": "assistant"}
    messages = [
        {"role": roles[turn["from"]], "content": turn["value"]} for turn in entry["conversations"]
    ]
    return {"id": entry["id"], "messages": messages, "images": [entry["image"]]}


def write_parquet(path: Path, images: Iterator[tuple[int, bytes]]) -> None:
    """Rows of an id, an image with its bytes and messages, in groups of a hundred."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    messages = as_messages({"id": 0, "image": "", "conversations": CONVERSATION})["messages"]
    writer = None
    while group := list(itertools.islice(images, 100)):
        rows = [
            {"id": i, "image": {"bytes": data, "path": f"{i}.jpg"}, "messages": messages}
            for i, data in group
        ]
        table = pa.Table.from_pylist(rows)
        # plain: images as they repeat here would be kept once
        writer = writer or pq.ParquetWriter(path, table.schema, use_dictionary=False)
        writer.write_table(table)
    assert writer is not None, "there is at least one image"
    writer.close()


def write_formats(work: Path, num_images: int) -> dict[str, Path]:
    """Folders by format, of the same photos in the same order."""
    files = [data for _, data in distinct_files("jpeg")]
    folders = {name: work / name for name in ("llava", "messages", "parquet")}
    write_source(folders["llava"], "jpeg", num_images)
    shutil.rmtree(folders["llava"] / "extracted")
    folders["messages"].mkdir()
    (folders["messages"] / "jpeg.tar").hardlink_to(folders["llava"] / "jpeg.tar")
    entries = json.loads((folders["llava"] / "entries.json").read_text())
    with (folders["messages"] / "entries.jsonl").open("w") as file:
        file.writelines(json.dumps(as_messages(entry)) + "\n" for entry in entries)
    folders["parquet"].mkdir()
    images = ((i, files[i % len(files)]) for i in range(num_images))
    write_parquet(folders["parquet"] / "entries.parquet", images)
    return folders


def small_image() -> bytes:
    return encoded(Image.effect_noise((32, 32), 40).convert("RGB"), "JPEG", quality=50)


def write_large_source(folder: Path, num_entries: int, name: str = "llava") -> None:
    """Many entries over small images, streamed to disk: a JSON or JSONL beside tars, or Parquet."""
    folder.mkdir(parents=True)
    small = small_image()
    if name == "parquet":
        write_parquet(folder / "entries.parquet", ((i, small) for i in range(num_entries)))
        return
    per_tar = num_entries // 10
    for number in range(10):
        with tarfile.open(folder / f"part{number}.tar", "w") as tar:
            member = tarfile.TarInfo()
            member.size = len(small)
            for i in range(per_tar):
                member.name = f"part{number}/{i}.jpg"
                tar.addfile(member, io.BytesIO(small))
    in_list = name == "llava"
    with (folder / ("entries.json" if in_list else "entries.jsonl")).open("w") as file:
        for i in range(num_entries):
            image = f"part{i % 10}/{i // 10}.jpg"
            entry = {"id": i, "image": image, "conversations": CONVERSATION}
            if in_list:
                file.write(("[" if i == 0 else ",\n") + json.dumps(entry))
            else:
                file.write(json.dumps(as_messages(entry)) + "\n")
        file.write("]" if in_list else "")


# --- what is measured ------------------------------------------------------------------------


def prepare_as_before(source: Path, output: Path) -> None:
    """The peer."""
    import webdataset  # takes seconds: only here, so that our workers do not pay for it

    folder = source / "extracted"
    entries = json.loads((source / "entries.json").read_text())
    kept = [entry for entry in entries if os.path.exists(folder / entry["image"])]
    (source / "entries_filtered.json").write_text(json.dumps(kept))
    output.mkdir()
    pattern = str(output / "pretrain-%d.tar")
    with webdataset.ShardWriter(pattern, maxcount=10_000, verbose=0) as writer:
        for index, entry in enumerate(kept):
            image = Image.open(folder / entry["image"]).convert("RGB")
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG")
            conversations = json.dumps(entry["conversations"]).encode()
            writer.write({"__key__": str(index), "jpg": buffer.getvalue(), "json": conversations})
    (source / "entries_filtered.json").unlink()


def prepare_ours(source: Path, output: Path, verify: str, workers: int) -> None:
    options = Options(verify=verify)  # type: ignore[arg-type]
    job = Job(data_dir=source, output_dir=output, json=None, options=options, format=None)
    engine = InProcessExecutor() if workers == 1 else ProcessExecutor(workers)
    run(job, engine, Reporter(Console(quiet=True)))


def measure(name: str, source: Path, output: Path, workers: int) -> dict[str, float]:
    """Run one preparation here; seconds, and the peak memory of this process in MiB."""
    if name == "peer":
        import webdataset  # noqa: F401 - not timed

    start = time.perf_counter()
    if name == "peer":
        prepare_as_before(source, output)
    else:
        prepare_ours(source, output, name, workers)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "rss_mb": peak_memory_mb()}


def peak_memory_mb() -> float:
    """Peak resident memory of this process since it was started (VmHWM; ru_maxrss would include
    that of the process which started it)."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measure_apart(name: str, source: Path, output: Path, workers: int = 1) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--measure", name, str(source), str(output), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    if done.returncode:
        raise RuntimeError(f"{name} failed on {source}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


# --- the parts -------------------------------------------------------------------------


class Results:
    """Rows as the JSON file holds them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        peer: str | None = None,
        peer_value: float | None = None,
    ) -> None:
        row = {"name": name, "value": value, "unit": unit, "peer": peer, "peer_value": peer_value}
        self.rows.append(row)

    def table(self) -> Table:
        table = Table("measurement", "ours", "unit", "peer", "peer's value")
        for row in self.rows:
            peer_value = "" if row["peer_value"] is None else f"{row['peer_value']:,.2f}"
            table.add_row(
                row["name"], f"{row['value']:,.2f}", row["unit"], row["peer"] or "", peer_value
            )
        return table


PEER = "decode, encode, ShardWriter"


def measure_speed(work: Path, results: Results, num_images: int, rounds: int) -> None:
    """Images a second on JPEG and on PNG sources, one worker."""
    for kind in ("jpeg", "png"):
        source = work / kind
        count = num_images if kind == "jpeg" else num_images // 4
        write_source(source, kind, count)
        names = ["peer", "decode", "structure"] if kind == "jpeg" else ["peer", "decode"]
        rates: dict[str, list[float]] = {name: [] for name in names}
        memory: dict[str, float] = {}
        for _ in range(rounds):
            for name in names:
                found = measure_apart(name, source, work / "output")
                shutil.rmtree(work / "output")
                rates[name].append(count / found["seconds"])
                memory[name] = found["rss_mb"]
        median = {name: statistics.median(found) for name, found in rates.items()}
        for name in names[1:]:
            label = f"{kind}_{name}"
            results.add(label, median[name], "images/s", PEER, median["peer"])
            # by round: whatever else the machine did then slowed both
            by_round = zip(rates[name], rates["peer"], strict=True)
            ratio = statistics.median(ours / peer for ours, peer in by_round)
            ratio_label = "png_ratio" if kind == "png" else f"{label}_ratio"
            results.add(ratio_label, ratio, "x", PEER, 1.0)
        results.add(f"{kind}_rss_mb", memory["decode"], "MiB", PEER, memory["peer"])
        shutil.rmtree(source)


def measure_formats(work: Path, results: Results, num_images: int, rounds: int) -> None:
    """The same photos as messages and as Parquet; the peer's value is our rate of LLaVA's JSON."""
    folders = write_formats(work, num_images)
    rates: dict[str, list[float]] = {name: [] for name in folders}
    for _ in range(rounds):
        for name, folder in folders.items():
            found = measure_apart("decode", folder, work / "output")
            shutil.rmtree(work / "output")
            rates[name].append(num_images / found["seconds"])
    for name in ("messages", "parquet"):
        by_round = list(zip(rates[name], rates["llava"], strict=True))
        rate, peer = (statistics.median(found) for found in zip(*by_round, strict=True))
        results.add(f"{name}_decode", rate, "images/s", "LLaVA JSON", peer)
        ratio = statistics.median(ours / peer for ours, peer in by_round)
        results.add(f"{name}_ratio", ratio, "x", "LLaVA JSON", 1.0)
    for folder in folders.values():
        shutil.rmtree(folder)


def measure_scaling(work: Path, results: Results, num_images: int, rounds: int) -> None:
    """Two workers against one; the peer's value is what the machine itself gave in the same round:
    two processes that only decode, against one. Needs two idle cores, and work enough for the
    start of two processes (half a second) not to count: four entries share an image."""
    source = work / "jpeg"
    write_source(source, "jpeg", num_images, entries_per_image=4)
    ratios, limits = [], []
    for _ in range(rounds):
        seconds = []
        for workers in (1, 2):
            found = measure_apart("decode", source, work / "output", workers)
            shutil.rmtree(work / "output")
            seconds.append(found["seconds"])
        ratios.append(seconds[0] / seconds[1])
        limits.append(count_decoded(2) / count_decoded(1))
    limit = statistics.median(limits)
    results.add("scaling_1_to_2", statistics.median(ratios), "x", "decoding alone", limit)
    shutil.rmtree(source)


def count_decoded(num_processes: int) -> int:
    """Images that so many processes decode in two seconds each, all together."""
    code = (
        "import sys, time, simplejpeg\n"
        "data = sys.stdin.buffer.read(); end = time.time() + 2; n = 0\n"
        "while time.time() < end: simplejpeg.decode_jpeg(data); n += 1\n"
        "print(n)"
    )
    data = encoded(photo(0), "JPEG", quality=90)
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE)
        for _ in range(num_processes)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(data)
        process.stdin.close()
    return sum(int(process.stdout.read()) for process in processes if process.stdout)


def measure_size(work: Path, results: Results, num_entries: int) -> None:
    """Memory and the cost of a second run, over as many entries as Cambrian737k has."""
    source, output = work / "large", work / "output"
    write_large_source(source, num_entries)
    first = measure_apart("structure", source, output)
    second = measure_apart("structure", source, output)
    label = f"{num_entries // 1000}k"
    results.add(f"rss_{label}_mb", first["rss_mb"], "MiB")
    results.add(f"run_{label}_seconds", first["seconds"], "s")
    results.add(f"second_run_{label}_percent", 100 * second["seconds"] / first["seconds"], "%")
    shutil.rmtree(source)
    shutil.rmtree(output)
    for name in ("messages", "parquet"):
        write_large_source(source, num_entries, name)
        found = measure_apart("structure", source, output)
        results.add(f"{name}_rss_{label}_mb", found["rss_mb"], "MiB", "LLaVA JSON", first["rss_mb"])
        shutil.rmtree(source)
        shutil.rmtree(output)


def measure_prepare(work: Path, results: Results, num_shards: int) -> None:
    """Energon's index over many small shards, through our front."""
    source, output = work / "many", work / "output"
    write_source(source, "jpeg", num_shards * 2)
    options = Options(shard_size=2, verify="none")
    job = Job(data_dir=source, output_dir=output, json=None, options=options)
    run(job, InProcessExecutor(), Reporter(Console(quiet=True)))
    start = time.perf_counter()
    command = [sys.executable, "-m", "data_prep", "prepare", str(output), "--num-workers", "2"]
    subprocess.run(command, check=True, env=_environment(), cwd=ROOT, timeout=1800)
    results.add(f"prepare_{num_shards}_shards_seconds", time.perf_counter() - start, "s")
    shutil.rmtree(source)
    shutil.rmtree(output)


def parts(quick: bool) -> Iterator[tuple[str, Callable[[Path, Results], None]]]:
    if quick:
        yield "speed", lambda work, results: measure_speed(work, results, 96, 1)
        yield "formats", lambda work, results: measure_formats(work, results, 96, 1)
        yield "scaling", lambda work, results: measure_scaling(work, results, 24, 1)
        yield "size", lambda work, results: measure_size(work, results, 2000)
        yield "prepare", lambda work, results: measure_prepare(work, results, 20)
    else:
        yield "speed", lambda work, results: measure_speed(work, results, 4000, 5)
        yield "formats", lambda work, results: measure_formats(work, results, 4000, 5)
        yield "scaling", lambda work, results: measure_scaling(work, results, 6000, 3)
        yield "size", lambda work, results: measure_size(work, results, 737_000)
        yield "prepare", lambda work, results: measure_prepare(work, results, 5000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run; its figures mean nothing"
    )
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--only", choices=["speed", "formats", "scaling", "size", "prepare"])
    parser.add_argument("--work-dir", type=Path, help="where to put the data (a few GB)")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, source, output, workers = arguments.measure
        print(json.dumps(measure(name, Path(source), Path(output), int(workers))))
        return
    results = Results()
    with tempfile.TemporaryDirectory(dir=arguments.work_dir) as work:
        for name, part in parts(arguments.quick):
            if arguments.only in (None, name):
                part(Path(work), results)
    Console().print(results.table())
    if arguments.quick:
        print("a smoke run: these figures of --quick mean nothing")
    if arguments.json:
        machine = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
        }
        arguments.json.write_text(
            json.dumps({"machine": machine, "results": results.rows}, indent=2)
        )


if __name__ == "__main__":
    main()
