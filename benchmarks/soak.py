"""Does memory stay flat? A long run of the tiny model on the CPU, its processes weighed as it goes.

    nohup nice -n 19 python benchmarks/soak.py --data-path W --steps 10000 > soak.log 2>&1 &

Every 100 steps it prints the resident memory of the trainer and of its loader processes; at the
end, whether each is within 5 % of what it was at step 1,000. Exit status 1 says that it is not.
Resident memory counts pages that processes share, such as torch's libraries, in each of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import psutil
import typer

ROOT = Path(__file__).resolve().parents[1]
_MIB = 2**20


def soak(
    data_path: Annotated[Path, typer.Option(help="Shards prepared for Energon.")],
    steps: Annotated[int, typer.Option(help="Steps of the run.")] = 10_000,
    every: Annotated[int, typer.Option(help="Steps between two lines.")] = 100,
    base: Annotated[int, typer.Option(help="Step whose memory the end is compared with.")] = 1_000,
    tolerance: Annotated[float, typer.Option(help="Growth from `base` that passes.")] = 0.05,
    setting: Annotated[
        list[str] | None, typer.Option(help="Settings of the run, KEY=VALUE.")
    ] = None,
) -> None:
    """Train for long and watch the memory of all processes."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        settings = [
            *("model=tiny", f"data.path={data_path}", f"model.cache_dir={folder}/models"),
            *("tokenizer=dct28_420", f"log_dir={folder}", "experiment_name=soak"),
            *("trainer.micro_batch_size=1", "trainer.global_batch_size=2"),
            *(f"trainer.max_steps={steps}", "trainer.val_every=500", "trainer.val_batches=2"),
            *("trainer.save_every=500", "data.seq_length=512", "data.num_workers=2"),
            *("data.shuffle_buffer_size=100", *(setting or [])),
        ]
        process = subprocess.Popen(
            [sys.executable, "-m", "dct_vl", "fit", *settings],
            cwd=ROOT,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        weights = watch(process, Path(folder) / "soak" / "steps.jsonl", every, steps)
        status = process.wait()
    if status:
        raise typer.Exit(status)
    raise typer.Exit(judge(weights, base, tolerance))


def watch(
    process: subprocess.Popen[bytes], log: Path, every: int, steps: int
) -> dict[int, tuple[int, ...]]:
    """Resident bytes of the trainer and of its loader processes, by step, until it ends."""
    weights: dict[int, tuple[int, ...]] = {}
    seen, place, started = 0, 0, time.monotonic()
    print("    step  steps/s  RSS in MiB: trainer, loader processes", flush=True)
    while process.poll() is None:
        time.sleep(0.05)
        if not log.is_file():
            continue
        with open(log, "rb") as file:
            file.seek(place)
            seen += file.read().count(b"\n")
            place = file.tell()
        due = steps if seen >= steps else seen // every * every
        if due and due not in weights and (weight := weigh(process.pid)):
            weights[due] = weight
            shown = ", ".join(f"{rss / _MIB:,.0f}" for rss in weights[due])
            print(f"{due:8,}  {seen / (time.monotonic() - started):7.2f}  {shown}", flush=True)
    return weights


def weigh(pid: int) -> tuple[int, ...]:
    """Resident bytes of a process and of its children, those with the least memory left out.

    The children of under 50 MiB are helpers of multiprocessing, not loaders. () where the process
    has ended.
    """
    try:
        trainer = psutil.Process(pid)
        found = [trainer.memory_info().rss]
        children = trainer.children()
    except psutil.NoSuchProcess:
        return ()
    if not found[0]:  # it has ended, and nobody has asked for its status yet
        return ()
    for child in children:
        try:
            rss = child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        if rss > 50 * _MIB:
            found.append(rss)
    return tuple(found)


def judge(weights: dict[int, tuple[int, ...]], base: int, tolerance: float) -> int:
    """Print the growth of every process since step `base`; 1 where one is beyond the tolerance."""
    if base not in weights:
        print(f"the run ended before step {base:,}: nothing to compare with")
        return 1
    last = max(weights)
    counts = len(weights[base]), len(weights[last])
    if counts[0] != counts[1]:
        print(f"{counts[0]} processes at step {base:,}, {counts[1]} at {last:,}: one has ended")
        return 1
    status = 0
    for number, (before, after) in enumerate(zip(weights[base], weights[last], strict=True)):
        name = f"loader process {number - 1}" if number else "trainer"
        growth = after / before - 1
        status |= growth > tolerance
        print(
            f"{name}: {before / _MIB:,.1f} MiB at step {base:,}, {after / _MIB:,.1f} at {last:,}: "
            f"{growth:+.1%}, {'too much' if growth > tolerance else 'fine'}"
        )
    return status


if __name__ == "__main__":
    typer.run(soak)
