"""Captions and documents: this project's engine beside transformers and vLLM, in one run.

    python benchmarks/generate.py [--vllm-python PYTHON [--vllm-site SITE]] [--json FILE]
    python benchmarks/generate.py --quick               # tiny, on a CPU: does it run?

Qwen2-VL-2B's shape with random weights, bf16. A caption is an image of 480×360 pixels, every one
another, encoded as JPEG, about 250 tokens of prompt and 128 new ones; a document is a page of 1,024
patches and 16 new tokens. Nothing ends early. The engine's rows begin with JPEG bytes: decoding,
resizing and cutting are part of them, and "wait" is the share of the time in which the model had
none. transformers gets its tensors ready, vLLM the decoded images; its own processor is part of it.

Each contestant is a process of its own with a time limit; one that fails is a row with its error.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

CAPTION = {"width": 480, "height": 360, "new_tokens": 128}
DOCUMENT = {"width": 448, "height": 448, "new_tokens": 16}
#: name → the script, and what it changes of the case
CONTESTANTS: dict[str, dict[str, Any]] = {
    "captions, ours": {"script": "ours"},
    "captions, ours compiled": {"script": "ours", "compiles": True},
    "captions, transformers": {"script": "hf", "images": 64},
    "captions, vLLM": {"script": "vllm"},
    "documents, pixel": {"script": "ours", **DOCUMENT},
    "documents, dct28_420": {"script": "ours", "tokenizer": "dct28_420", **DOCUMENT},
}
#: ratio of images/s → contestants
RATIOS = {
    "ratio_pinned_hf": ("captions, ours", "captions, transformers"),
    "ratio_vllm": ("captions, ours", "captions, vLLM"),
    "ratio_vllm_compiled": ("captions, ours compiled", "captions, vLLM"),
    "ratio_dct28_documents": ("documents, dct28_420", "documents, pixel"),
}
QUESTION = "Describe the image in one sentence: what is where, in which colours, and what for?"


def write_inputs(folder: Path, options: argparse.Namespace) -> None:
    """The model's folder without weights, and the images of both kinds."""
    from dct_vl.model.random_model import write_random_model

    shape = "tiny" if options.quick else "2b"
    write_random_model(folder / "model", corpus=[QUESTION] * 100, shape=shape, weights=False)
    for kind in (CAPTION, DOCUMENT):
        for number in range(options.images):
            size = (kind["height"], kind["width"])
            path = folder / f"{size[1]}x{size[0]}-{number:05d}.jpg"
            path.write_bytes(jpeg(number, *size))


def jpeg(seed: int, height: int, width: int) -> bytes:
    """A smooth random image with some texture, as photos have."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noise = rng.integers(-12, 13, (height, width, 1), dtype=np.int16)
    data = io.BytesIO()
    Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=85)
    return data.getvalue()


def run(name: str, case: dict[str, Any], folder: Path, options: argparse.Namespace) -> dict:
    """One contestant's result, or its error."""
    script = HERE / f"generate_{case['script']}.py"
    files = [str(folder / "case.json"), str(folder / "result.json")]
    Path(files[0]).write_text(json.dumps(case))
    Path(files[1]).unlink(missing_ok=True)
    python, environ = sys.executable, dict(os.environ)
    if case["script"] == "vllm":
        if not options.vllm_python:
            return {"error": "give --vllm-python PYTHON"}
        python = options.vllm_python
        environ["PYTHONPATH"] = options.vllm_site or ""
    log = folder / "log"
    try:
        with open(log, "wb") as out:
            subprocess.run(
                [python, str(script), *files],
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=options.timeout,
                env=environ,
            )
    except (subprocess.TimeoutExpired, OSError) as error:
        reason = str(error)
    else:
        reason = "no result"
    if Path(files[1]).is_file():
        found: dict[str, Any] = json.loads(Path(files[1]).read_text())
        return found
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    print("\n".join(f"    {line[:200]}" for line in lines[-options.tail :]), flush=True)
    return {"error": f"{reason}: {(lines or [''])[-1][:200]}"}


def show(results: dict[str, dict[str, Any]]) -> None:
    """The table."""
    columns = {
        "images/s": ("images_s", ".1f"),
        "tokens/s": ("tokens_s", ".0f"),
        "ms a step": ("step_ms", ".2f"),
        "first answer s": ("first_s", ".2f"),
        "start s": ("start_s", ".1f"),
        "wait": ("wait_share", ".0%"),
        "prompt tokens": ("prompt_tokens", ".0f"),
        "peak GiB": ("peak_gib", ".1f"),
    }
    table = Table()
    for column in ("", *columns, "what"):
        table.add_column(column, justify="left" if column in ("", "what") else "right")
    for name, result in results.items():
        cells = [
            format(result[key], form) if result.get(key) is not None else "–"
            for key, form in columns.values()
        ]
        table.add_row(name, *cells, result.get("error") or result.get("what", ""))
    Console(width=200).print(table)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="tiny shape, few images")
    add("--only", help="contestants by a part of their name, semicolon between")
    add("--images", type=int, help="images of a row")
    add("--batch-size", type=int, help="answers at the same time")
    add("--vllm-python", metavar="PYTHON", help="an interpreter that has vLLM")
    add("--vllm-site", metavar="SITE", help="its PYTHONPATH")
    add("--timeout", type=float, default=240, help="seconds of a contestant")
    add("--tail", type=int, default=15, help="lines printed of what fails")
    add("--json", type=Path)
    options = parser.parse_args()
    options.images = options.images or (4 if options.quick else 512)
    options.batch_size = options.batch_size or (2 if options.quick else 64)
    return options


def main() -> None:
    """Run what was asked for and print it."""
    options = parse()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    load = " ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{device}, torch {torch.__version__}, {os.cpu_count()} cores, load {load}", flush=True)
    wanted = options.only.split(";") if options.only else [""]
    chosen = {n: c for n, c in CONTESTANTS.items() if any(part in n for part in wanted)}
    if not chosen:
        raise SystemExit(f"--only {options.only}: known are {'; '.join(CONTESTANTS)}")
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, options)
        base = {
            **CAPTION,
            "folder": name,
            "question": QUESTION,
            "images": options.images,
            "batch_size": options.batch_size,
            "tokenizer": "pixel",
            "compiles": False,
        }
        for contestant, changes in chosen.items():
            case = {**base, **changes}
            case["images"] = min(case["images"], options.images)
            if options.quick:
                case["new_tokens"] = min(case["new_tokens"], 4)
            began = time.monotonic()
            result = results[contestant] = run(contestant, case, folder, options)
            said = result.get("error") or f"{result['images_s']:.1f} images/s"
            print(f"{contestant}: {said} ({time.monotonic() - began:.0f} s)", flush=True)
    show(results)
    figures = {}
    for ratio, pair in RATIOS.items():
        one, other = (results.get(who, {}).get("images_s") for who in pair)
        if one and other:
            figures[ratio] = one / other
            print(f"{ratio} {one / other:.2f}")
    if options.json:
        entries = [
            {"name": n, "value": r.get("images_s"), "unit": "images/s", **r}
            for n, r in results.items()
        ]
        entries += [{"name": n, "value": v, "unit": "x"} for n, v in figures.items()]
        options.json.write_text(json.dumps({"machine": device, "results": entries}, indent=2))


if __name__ == "__main__":
    main()
