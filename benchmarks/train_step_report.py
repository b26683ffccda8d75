"""What train_step.py prints and writes of its contestants' results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

#: ratio of samples/s → contestants
RATIOS = {
    "ratio_newest_hf": ("packed pixel", "newest transformers"),
    "ratio_nemo_stock": ("packed pixel", "NeMo stock"),
    "ratio_pinned_hf": ("packed pixel", "pinned transformers"),
    "ratio_padded": ("packed pixel", "padded pixel"),
    "ratio_dct28_pixel": ("packed dct28_420", "packed pixel"),
    "ratio_dct28_pixel_twice": ("packed dct28_420 twice", "packed pixel"),
    "ratio_dct28_pixel_large": ("packed dct28_420 x4", "packed pixel x4"),
}


def figures(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The figures that are watched; those whose contestants failed are left out."""
    found = {}
    pixel = results.get("packed pixel", {})
    if pixel.get("mfu"):
        found = {"mfu_pixel": pixel["mfu"], "mfu_pixel_needed": pixel["mfu_needed"]}
    for name, pair in RATIOS.items():
        one, other = (results.get(who, {}).get("samples_s") for who in pair)
        if one and other:
            found[name] = one / other
    peaks = [results.get(who, {}).get("peak_gib") for who in RATIOS["ratio_newest_hf"]]
    if all(peaks):
        found["peak_of_newest_hf"] = peaks[0] / peaks[1]
    fed = results.get("packed pixel, shards", {})
    if "data_wait_share" in fed:
        found["data_wait_share"] = fed["data_wait_share"]
    return found


def summary(result: dict[str, Any]) -> str:
    """One line of a contestant while others are still to run."""
    if "error" in result:
        return f"failed: {result['error']}"
    line = f"{1e3 * result['seconds']:.1f} ms a step, {result['samples_s']:.1f} samples/s"
    if result.get("mfu"):
        line += f", mfu {result['mfu']:.3f}"
    if result.get("peak_gib"):
        line += f", {result['peak_gib']:.1f} GiB"
    return f"{line} ({result['process_s']:.0f} s in all)"


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
        if result.get("text_per_sample"):
            what.append(
                f"{result['text_per_sample']:.0f} text and {result['visual_per_sample']:.0f} "
                "visual tokens a sample"
            )
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


def show_profile(profile: dict[str, Any]) -> None:
    """The kernels of a step."""
    print(f"a kernel ran {profile['busy_share']:.1%} of {1e3 * profile['wall']:.1f} ms a step")
    print("  ms a step  calls  kernel")
    for name, calls, seconds in profile["kernels"]:
        print(f"{1e3 * seconds:11.2f} {calls:6.0f}  {name[:100]}")
    print("         ms  no kernel between")
    for microseconds, before, behind in profile["gaps"]:
        print(f"{microseconds / 1e3:11.2f}  {before[:60]} | {behind[:60]}")


def write(path: Path, entry: dict[str, Any]) -> None:
    """The JSON file, whole at any moment."""
    beside = path.with_name(f"{path.name}.part")
    beside.write_text(json.dumps(entry, indent=2, default=str))
    os.replace(beside, path)
