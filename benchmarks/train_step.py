"""One training step of Qwen2-VL-2B, this project's beside its peers', in one run on one GPU.

    python benchmarks/train_step.py [--newer-transformers SITE] [--json FILE]
    python benchmarks/train_step.py --variants          # every switch of `speed` off, one at a time
    python benchmarks/train_step.py --profile           # where the time of a step goes
    python benchmarks/train_step.py --real-loader W     # the same step fed from shards
    python benchmarks/train_step.py --quick             # tiny, in minutes on a CPU: does it run?

Random weights, bf16, no recomputation, loss on the text, medians over blocks of steps. Each
contestant is a process of its own with a time limit; one that fails is a row with its error. FLOPs
are `training.flops`, the same for all, by the shape and not by what an implementation happens to
compute. "mfu" counts the output layer for every token, as 6 · parameters · tokens does; "mfu
needed" only for tokens with loss.

SITE is a folder with another transformers (`pip install --target SITE transformers`); without it
the newest one that lies on this interpreter's own path is taken, if it is not the first one.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from train_step_cases import CONTESTANTS, VARIANTS, base_case, flops_of, make_case  # noqa: E402

from training.flops import device_peak_flops  # noqa: E402


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


def run(case: dict[str, Any], options: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Run one contestant; a failure is a result with `error`."""
    with tempfile.TemporaryDirectory() as folder:
        files = (str(Path(folder) / "case.json"), str(Path(folder) / "result.json"))
        Path(files[0]).write_text(json.dumps(case))
        try:
            line = command(case, options, files)
            done = subprocess.run(
                line, timeout=limit, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except (subprocess.TimeoutExpired, LookupError, OSError) as error:
            text = f"no result within {limit:.0f} s" if limit and "timed out" in str(error) else ""
            return {"error": text or str(error)}
        if done.returncode or not Path(files[1]).is_file():
            lines = [text for text in done.stdout.splitlines() if text.strip()]
            if options.verbose:
                print("\n".join(lines[-40:]), flush=True)
            return {"error": lines[-1][:300] if lines else f"exit status {done.returncode}"}
        result: dict[str, Any] = json.loads(Path(files[1]).read_text())
        return result


def measure(
    cases: dict[str, dict[str, Any]], options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Run all contestants within the time that is left."""
    stop = time.monotonic() + options.budget
    peak = device_peak_flops()
    results = {}
    for name, case in cases.items():
        left = stop - time.monotonic()
        if left < options.least:
            results[name] = {"error": f"not started: {left:.0f} s of --budget were left"}
            continue
        started = time.monotonic()
        result = run(case, options, min(options.timeout, left))
        result["process_s"] = time.monotonic() - started
        if "seconds" in result:
            samples = result.get("samples_per_step", case["images"])
            result["samples_s"] = samples / result["seconds"]
            if case.get("data_path") is None:
                whole, needed = flops_of(case)
                result["tflop"] = whole / 1e12
                result["tflops"] = whole / 1e12 / result["seconds"]
                result["mfu"] = peak and whole / result["seconds"] / peak
                result["mfu_needed"] = peak and needed / result["seconds"] / peak
            else:
                result["mfu_needed"] = result["logged_mfu"]
        results[name] = result
        print(f"{name}: {summary(result)}", flush=True)
    return results


def summary(result: dict[str, Any]) -> str:
    """One line while the others run."""
    if "error" in result:
        return f"failed: {result['error']}"
    line = f"{1e3 * result['seconds']:.1f} ms a step, {result['samples_s']:.1f} samples/s"
    return f"{line} ({result['process_s']:.0f} s in all)"


def figures(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The ratios that are watched; those whose contestants failed are left out."""
    pixel = results.get("packed pixel", {})
    found = {}
    if pixel.get("mfu"):
        found = {"mfu_pixel": pixel["mfu"], "mfu_pixel_needed": pixel["mfu_needed"]}
    for name, one, other in (
        ("ratio_newest_hf", "packed pixel", "newest transformers"),
        ("ratio_nemo_stock", "packed pixel", "NeMo stock"),
        ("ratio_pinned_hf", "packed pixel", "pinned transformers"),
        ("ratio_padded", "packed pixel", "padded pixel"),
        ("ratio_dct28_pixel", "packed dct28_420", "packed pixel"),
        (
            "ratio_dct28_pixel_large",
            "packed dct28_420, 4 x patches",
            "packed pixel, 4 x patches",
        ),
    ):
        pair = [results.get(who, {}).get("samples_s") for who in (one, other)]
        if all(pair):
            found[name] = pair[0] / pair[1]
    return found


def show(results: dict[str, dict[str, Any]]) -> None:
    """The table."""
    table = Table()
    for column in ("", "ms", "samples/s", "TFLOP/s", "mfu", "mfu needed", "peak GiB", "what"):
        table.add_column(column, justify="left" if column in ("", "what") else "right")
    for name, result in results.items():
        if "error" in result:
            table.add_row(name, *["-"] * 6, f"[red]{result['error']}")
            continue
        what = [result["versions"], result.get("layer_spec", ""), result["optimizer"]]
        share = result.get("data_wait_share")
        if share is not None:
            what.append(f"data wait {share:.1%}")
        table.add_row(
            name,
            f"{1e3 * result['seconds']:.1f}",
            f"{result['samples_s']:.1f}",
            *(
                form.format(result[key]) if result.get(key) else "-"
                for key, form in (
                    ("tflops", "{:.1f}"),
                    ("mfu", "{:.3f}"),
                    ("mfu_needed", "{:.3f}"),
                    ("peak_gib", "{:.1f}"),
                )
            ),
            "; ".join(part for part in what if part),
        )
    Console(width=170).print(table)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny shape, few steps")
    parser.add_argument("--variants", action="store_true", help="ablation of the speed switches")
    parser.add_argument("--profile", action="store_true", help="kernels of the packed step")
    parser.add_argument("--real-loader", metavar="W", help="prepared shards that feed the step")
    parser.add_argument("--seq-length", type=int, default=8192, help="of packs with --real-loader")
    parser.add_argument("--workers", type=int, default=12, help="with --real-loader")
    parser.add_argument("--only", help="contestants by a part of their name, comma between")
    parser.add_argument("--newer-transformers", metavar="SITE", help="folder, or an interpreter")
    parser.add_argument("--pinned-transformers", metavar="SITE")
    parser.add_argument("--images", type=int)
    parser.add_argument("--patches", type=int)
    parser.add_argument("--text", type=int)
    parser.add_argument("--loss-on", choices=("text", "all"), default="text")
    parser.add_argument("--layer-spec", choices=("auto", "te", "local", "hybrid"), default="local")
    parser.add_argument("--override", action="append", default=[], help="KEY=VALUE of a run")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--block", type=int, help="steps between two looks at the clock")
    parser.add_argument("--warmup", type=int)
    parser.add_argument("--timeout", type=float, default=240, help="seconds of a contestant")
    parser.add_argument("--budget", type=float, default=460, help="seconds of all")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--verbose", action="store_true", help="output of what fails")
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
    base = base_case(options)
    packed = {"stack": "ours", "packed": True}
    if options.variants:
        chosen = {name: packed | changes for name, changes in VARIANTS.items()}
    elif options.profile:
        chosen = {"packed pixel": packed | {"profile": True}}
    elif options.real_loader:
        loader = [f"data.num_workers={options.workers}"]
        chosen = {
            "packed pixel, shards": packed
            | {
                "data_path": str(Path(options.real_loader).resolve()),
                "seq_length": options.seq_length,
                "overrides": loader,
                "steps": max(options.steps, 30),
            }
        }
    else:
        chosen = CONTESTANTS
    if options.only:
        wanted = options.only.split(",")
        chosen = {n: c for n, c in chosen.items() if any(part in n for part in wanted)}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{device}, torch {torch.__version__}, {options.images} pictures of {options.patches} "
        f"patches + {options.text} text tokens, {options.steps} steps after {options.warmup}",
        flush=True,
    )
    results = measure({name: make_case(base, c) for name, c in chosen.items()}, options)
    for result in results.values():
        profile = result.get("profile")
        if profile:
            print(profile.pop("table"))
            print(f"a kernel ran {profile['busy_share']:.1%} of {profile['wall']:.3f} s (2 steps)")
    show(results)
    found = figures(results)
    for name, value in found.items():
        print(f"{name} {value:.3f}")
    if options.json:
        entry = {"device": device, "options": vars(options), "figures": found, "results": results}
        options.json.write_text(json.dumps(entry, indent=2, default=str))


if __name__ == "__main__":
    main()
