"""One training step of Qwen2-VL-2B, this project's beside its peers', in one run on one GPU.

    python benchmarks/train_step.py [--newer-transformers SITE] [--te-site SITE] [--json FILE]
    python benchmarks/train_step.py --variants          # every switch of `speed` off, one at a time
    python benchmarks/train_step.py --profile           # where the time of a step goes
    python benchmarks/train_step.py --loader 12         # the step fed from shards by 12 processes
    python benchmarks/train_step.py --quick             # tiny, in minutes on a CPU: does it run?

Random weights, bf16, no recomputation, loss on the text, medians over blocks of steps. Each
contestant is a process of its own with a time limit; one that fails is a row with its error. FLOPs
are `dct_vl.runs.flops`, the same for all, by the shape and not by what an implementation happens to
compute. "mfu" counts the output layer for every token, as 6 · parameters · tokens does; "mfu
needed" only for tokens with loss. FILE is written anew after every contestant.

SITE is a folder with another transformers (`pip install --target SITE transformers`); without it
the newest one that lies on this interpreter's own path is taken, if it is not the first one. With
--te-site, Transformer Engine is taken from that folder by the contestants that want it and hidden
from the others; without, all see what is installed.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402
from train_step_cases import CONTESTANTS, VARIANTS, base_case, flops_of, make_case  # noqa: E402
from train_step_report import figures, show, show_profile, summary, write  # noqa: E402

from dct_vl.runs.flops import device_peak_flops  # noqa: E402


def find_newest_transformers() -> str | None:
    """Folder on sys.path with the highest version of transformers, unless it comes first anyway."""
    found: list[tuple[tuple[int, ...], str]] = []
    for entry in dict.fromkeys(sys.path):
        for info in Path(entry or ".").glob("transformers-*.dist-info"):
            version = re.findall(r"\d+", info.name.split("-")[1])
            found.append((tuple(int(number) for number in version[:3]), entry))
    if len(found) < 2 or max(found)[1] == found[0][1]:
        return None
    return max(found)[1]


def command(case: dict[str, Any], options: argparse.Namespace, files: tuple[str, str]) -> list[str]:
    """The contestant's process.

    Raises:
        LookupError: its package is not installed.
    """
    if case["stack"] != "hf":
        return [sys.executable, str(HERE / "train_step_nemo.py"), *files]
    script = [str(HERE / "train_step_hf.py"), *files]
    if case["site"] == "pinned":
        site = options.pinned_transformers
        return [sys.executable, *script, *([site] if site else [])]
    site = options.newer_transformers or find_newest_transformers()
    if site is None:
        raise LookupError("no newer transformers found: give --newer-transformers SITE")
    if Path(site).is_file():  # another interpreter
        return [site, *script]
    return [sys.executable, *script, site]


def environment(case: dict[str, Any], options: argparse.Namespace) -> dict[str, str]:
    """The contestant's environment, with Transformer Engine where it wants that."""
    environ = dict(os.environ)
    if case["wants_te"] and options.te_site:
        paths = [environ.get("PYTHONPATH", ""), options.te_site]
        environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environ


def run(case: dict[str, Any], options: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Run one contestant; a failure is a result with `error`, its last lines printed.

    The result is the last thing that a contestant writes: how its libraries end the process after
    that, with a crash or never, takes nothing away from it.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = (str(Path(folder) / "case.json"), str(Path(folder) / "result.json"))
        Path(files[0]).write_text(json.dumps(case))
        log = Path(folder) / "log"
        error = ""
        try:
            line = command(case, options, files)
            with open(log, "wb") as out:
                done = subprocess.run(
                    line,
                    timeout=limit,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=environment(case, options),
                )
            if done.returncode:
                error = f"exit status {done.returncode}"
        except subprocess.TimeoutExpired:
            error = f"no result within {limit:.0f} s"
        except (LookupError, OSError) as reason:
            return {"error": str(reason)}
        result = Path(files[1])
        if result.is_file():
            found: dict[str, Any] = json.loads(result.read_text())
            return found
        lines = [t for t in log.read_text(errors="replace").splitlines() if t.strip()]
        print("\n".join(f"    {text[:200]}" for text in lines[-options.tail :]), flush=True)
        return {"error": describe(lines, error)}


def describe(lines: list[str], status: str) -> str:
    """The last line that names an exception, or else the last one, after the status."""
    named = [t for t in lines if re.match(r"[\w.]*(Error|Exception|Interrupt|Refused)\b", t)]
    last = (named or lines or [""])[-1].strip()
    return f"{status}: {last}"[:400]


def measure(
    cases: dict[str, dict[str, Any]], options: argparse.Namespace, head: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Run all contestants within the time that is left."""
    stop = time.monotonic() + options.budget
    peak = device_peak_flops()
    results: dict[str, dict[str, Any]] = {}
    for name, case in cases.items():
        left = stop - time.monotonic()
        if left < options.least:
            results[name] = {"error": f"not started: {left:.0f} s of --budget were left"}
        else:
            started = time.monotonic()
            results[name] = run(case, options, min(options.timeout, left))
            results[name]["process_s"] = time.monotonic() - started
            if "seconds" in results[name]:
                add_rates(results[name], case, peak)
        print(f"{name}: {summary(results[name])}", flush=True)
        if options.json:
            write(options.json, {**head, "figures": figures(results), "results": results})
    return results


def add_rates(result: dict[str, Any], case: dict[str, Any], peak: float | None) -> None:
    """Samples, FLOPs and MFU of a measured step."""
    samples = result.get("samples_per_step", case["images"])
    result["samples_s"] = samples / result["seconds"]
    if case.get("data_path") is not None:
        # packs differ, so that the run's own meters are asked
        result["mfu_needed"] = result["logged_mfu"]
        return
    whole, needed = flops_of(case)
    result["tflop"] = whole / 1e12
    result["tflops"] = whole / 1e12 / result["seconds"]
    result["mfu"] = peak and whole / result["seconds"] / peak
    result["mfu_needed"] = peak and needed / result["seconds"] / peak


def choose(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The contestants asked for; raises SystemExit for a name that none has."""
    packed = {"stack": "ours", "packed": True}
    if options.variants:
        chosen = {name: packed | changes for name, changes in VARIANTS.items()}
    elif options.profile:
        te = {"wants_te": options.layer_spec != "local"}
        chosen = {"packed pixel": packed | te | {"profile": True}}
    elif options.loader is not None:
        return {"packed pixel, shards": packed | loader_case(options)}
    else:
        chosen = dict(CONTESTANTS)
    if not options.only:
        return chosen
    wanted: dict[str, dict[str, Any]] = {}
    for part in options.only.split(","):
        found = [part] if part in chosen else [name for name in chosen if part in name]
        if not found:
            raise SystemExit(f"--only {part!r}: no contestant has it; known: {', '.join(chosen)}")
        wanted |= {name: chosen[name] for name in found}
    return wanted


def loader_case(options: argparse.Namespace) -> dict[str, Any]:
    """The step on packs of as many samples as the others have, read from shards."""
    row = options.patches // 4 + options.text + 2
    shards = Path(options.shards or tempfile.mkdtemp(prefix="train-step-shards-"))
    if not options.shards:
        atexit.register(shutil.rmtree, shards, ignore_errors=True)
    if not (shards / ".nv-meta").is_dir():
        from train_step_shards import write_shards

        started = time.monotonic()
        shards = write_shards(
            shards,
            num_samples=60 if options.quick else 1600,
            patches=options.patches,
            text=options.text,
            num_workers=max(1, options.loader),
        )
        print(f"shards: {time.monotonic() - started:.0f} s", flush=True)
    overrides = [
        f"data.num_workers={options.loader}",
        f"data.max_pixels={196 * options.patches}",
        "data.packing_buffer_size=128",
        "data.shuffle_buffer_size=200",
        # the meters' own line of every step
        "trainer.log_every=1",
    ]
    return {
        "data_path": str(shards.resolve()),
        "seq_length": options.seq_length or options.images * row,
        "overrides": overrides,
        "warmup": 2 * options.warmup,
        "steps": options.steps if options.quick else max(options.steps, 40),
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="tiny shape, few steps")
    add("--variants", action="store_true", help="ablation of the speed switches")
    add("--profile", action="store_true", help="kernels of the packed step")
    add("--loader", type=int, metavar="WORKERS", help="feed the packed step from shards")
    add("--shards", metavar="W", help="prepared shards for --loader, or where to draw some")
    add("--seq-length", type=int, help="of packs with --loader")
    add("--only", help="contestants by their name or a part of it, comma between")
    add("--newer-transformers", metavar="SITE", help="folder, or an interpreter")
    add("--pinned-transformers", metavar="SITE")
    add("--te-site", metavar="SITE", help="folder with Transformer Engine")
    add("--images", type=int)
    add("--patches", type=int)
    add("--text", type=int)
    add("--loss-on", choices=("text", "all"), default="text")
    add("--layer-spec", choices=("auto", "te", "local", "hybrid"), default="local")
    add("--override", action="append", default=[], help="KEY=VALUE of a run")
    add("--steps", type=int)
    add("--block", type=int, help="steps between two looks at the clock")
    add("--warmup", type=int)
    add("--timeout", type=float, default=240, help="seconds of a contestant")
    add("--budget", type=float, default=460, help="seconds of all")
    add("--tail", type=int, default=15, help="lines printed of what fails")
    add("--json", type=Path)
    options = parser.parse_args()
    defaults = {"images": 16, "patches": 1024, "text": 254, "steps": 12, "warmup": 5, "block": 4}
    if options.quick:
        defaults = {"images": 2, "patches": 64, "text": 30, "steps": 3, "warmup": 2, "block": 1}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.least = 5 if options.quick else 30
    return options


def main() -> None:
    """Run what was asked for and print it."""
    options = parse()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{device}, torch {torch.__version__}, {options.images} images of {options.patches} "
        f"patches + {options.text} text tokens, {options.steps} steps after {options.warmup}",
        flush=True,
    )
    base = base_case(options)
    cases: Mapping[str, dict[str, Any]] = choose(options)
    head = {"device": device, "torch": torch.__version__, "options": vars(options)}
    results = measure({name: make_case(base, c) for name, c in cases.items()}, options, head)
    for result in results.values():
        if result.get("profile"):
            show_profile(result["profile"])
    show(results)
    for name, value in figures(results).items():
        print(f"{name} {value:.3f}")


if __name__ == "__main__":
    main()
