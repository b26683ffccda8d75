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

from dct_tokenizer import build_tokenizer  # noqa: E402
from dct_tokenizer.cost import MODELS, ModelShape  # noqa: E402
from training.flops import StepFlops, StepWork, device_peak_flops  # noqa: E402

TOKEN_IDS_2B = {
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
}
TEXT_2B = {
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "rope_theta": 1e6,
    "mrope_section": [16, 24, 24],
}
VISION = {
    "depth": 32,
    "embed_dim": 1280,
    "hidden_size": 1536,
    "num_heads": 16,
    "mlp_ratio": 4,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
TINY_IDS = {name: 500 + number for number, name in enumerate(TOKEN_IDS_2B)}
TINY_TEXT = {
    **TEXT_2B,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 384,
    "vocab_size": 640,
    "mrope_section": [4, 6, 6],
}
TINY_VISION = {
    **VISION,
    "depth": 4,
    "embed_dim": 128,
    "hidden_size": 128,
    "num_heads": 4,
    "mlp_ratio": 2,
}

#: contestant → what it changes of the case; `ours` runs through training.fit
CONTESTANTS: dict[str, dict[str, Any]] = {
    "packed pixel": {"stack": "ours", "packed": True},
    "newest transformers": {"stack": "hf", "site": "newest"},
    "NeMo stock": {"stack": "nemo"},
    "packed dct28_420": {"stack": "ours", "packed": True, "tokenizer": "dct28_420"},
    "padded pixel": {"stack": "ours", "packed": False},
    "pinned transformers": {"stack": "hf", "site": "pinned"},
    "packed pixel, 4 x patches": {"stack": "ours", "packed": True, "large": True},
    "packed dct28_420, 4 x patches": {
        "stack": "ours",
        "packed": True,
        "tokenizer": "dct28_420",
        "large": True,
    },
}
VARIANTS: dict[str, dict[str, Any]] = {
    "all on": {},
    "fused_layers off": {"overrides": ["speed.fused_layers=false"]},
    "compile off": {"overrides": ["speed.compile=false"]},
    "answer_loss off": {"overrides": ["speed.answer_loss=false"]},
    "fused_optimizer off": {"overrides": ["speed.fused_optimizer=false"]},
    "all off": {
        "overrides": [
            f"speed.{name}=false"
            for name in ("fused_layers", "compile", "answer_loss", "fused_optimizer")
        ]
    },
    "recompute on": {"overrides": ["speed.recompute=true"]},
    "layer_spec hybrid": {"layer_spec": "hybrid"},
    "layer_spec te": {"layer_spec": "te"},
}


def base_case(options: argparse.Namespace) -> dict[str, Any]:
    """What all contestants share."""
    grid = round(options.patches**0.5)
    if grid * grid != options.patches or grid % 4:
        raise SystemExit(f"--patches {options.patches}: expected the square of a multiple of 4")
    quick = options.quick
    return {
        "shape": "tiny" if quick else "2b",
        "token_ids": TINY_IDS if quick else TOKEN_IDS_2B,
        "max_text_id": 500 if quick else 151643,
        "text_config": dict(TINY_TEXT if quick else TEXT_2B),
        "vision_config": dict(TINY_VISION if quick else VISION),
        "images": options.images,
        "grid": grid,
        "text": options.text,
        "loss_on": options.loss_on,
        "warmup": options.warmup,
        "steps": options.steps,
        "block": options.block,
        "tokenizer": "pixel",
        "packed": False,
        "layer_spec": options.layer_spec,
        "overrides": list(options.override),
        "site": None,
    }


def make_case(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A contestant's case."""
    case = {**base, **changes, "overrides": [*base["overrides"], *changes.get("overrides", ())]}
    if case.pop("large", False):  # twice the side, half the rows
        case |= {"grid": 2 * case["grid"], "images": max(1, case["images"] // 2)}
    return case


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


def flops_of(case: dict[str, Any]) -> tuple[float, float]:
    """FLOPs of the case's step, the output layer counted for all tokens, and for those with loss.

    Of a tokenizer the tokens are its own; every stack with stock pixels has the same.
    """
    text, vision = case["text_config"], case["vision_config"]
    visual = build_tokenizer(case["tokenizer"], max_pixels=10**7)
    plan = visual.plan(14 * case["grid"], 14 * case["grid"])
    shape = ModelShape(
        vit_layers=vision["depth"],
        vit_width=vision["embed_dim"],
        vit_mlp=int(vision["embed_dim"] * vision["mlp_ratio"]),
        llm_layers=text["num_hidden_layers"],
        llm_width=text["hidden_size"],
        llm_mlp=text["intermediate_size"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        head_dim=text["hidden_size"] // text["num_attention_heads"],
    )
    assert case["shape"] != "2b" or shape == MODELS["2b"]
    front_end = visual.front_end(1)
    fixed = front_end.flops_per_cell(0, still=True)
    counter = StepFlops(
        shape=shape,
        vocab_size=text["vocab_size"],
        front_end_fixed=fixed,
        front_end_weight=front_end.flops_per_cell(shape.vit_width, still=True) - fixed,
    )
    rows, num_text = case["images"], case["text"] + 2
    tokens = plan.num_llm_tokens + num_text
    with_loss = num_text if case["loss_on"] == "text" else tokens
    results = []
    for outputs in (tokens, with_loss):
        work = StepWork(
            num_cells=rows * plan.num_cells,
            cell_pairs=rows * plan.num_cells**2,
            num_tokens=rows * tokens,
            token_pairs=rows * tokens**2,
            num_output_tokens=rows * outputs,
        )
        results.append(counter.of(work))
    return results[0], results[1]


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
    parser.add_argument("--timeout", type=float, default=170, help="seconds of a contestant")
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
