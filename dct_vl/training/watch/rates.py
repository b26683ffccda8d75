"""The rates of a step, as its log, TensorBoard, Weights & Biases and the progress line get them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: field of a line of steps.jsonl → name of the curve; loss, lr and grad_norm are NeMo's
CURVES = {
    "samples_per_second": "rates/samples_per_second",
    "text_tokens_per_second": "rates/text_tokens_per_second",
    "visual_tokens_per_second": "rates/visual_tokens_per_second",
    "padding_tokens_per_second": "rates/padding_tokens_per_second",
    "tflops": "device/tflops",
    "mfu": "device/mfu",
    "peak_memory_gib": "device/peak_memory_gib",
    "seconds": "step/seconds",
    "data_wait_share": "step/data_wait_share",
}


def token_rates(totals: Mapping[str, int], seconds: float) -> dict[str, float]:
    """Text, visual and padding tokens a second.

    Args:
        totals: `num_text_tokens`, `num_visual_tokens` and `num_padding_tokens` of a step.
        seconds: that it took.
    """
    kinds = ("text", "visual", "padding")
    return {f"{kind}_tokens_per_second": totals[f"num_{kind}_tokens"] / seconds for kind in kinds}


def curves(entry: Mapping[str, Any]) -> dict[str, float]:
    """What loggers get of a line of steps.jsonl: what is known of `CURVES`."""
    return {name: entry[key] for key, name in CURVES.items() if entry[key] is not None}


def progress(entry: Mapping[str, Any]) -> dict[str, str]:
    """What the progress line shows of a line of steps.jsonl; short, for it is one line."""
    tokens = entry["text_tokens_per_second"] + entry["visual_tokens_per_second"]
    shown = {
        "loss": f"{entry['loss']:.3f}",
        "samples/s": f"{entry['samples_per_second']:.3g}",
        "tokens/s": f"{tokens:.3g}" if tokens < 1000 else f"{tokens / 1000:.3g}k",
    }
    if entry["mfu"] is not None:
        shown["mfu"] = f"{100 * entry['mfu']:.0f}%"
    return shown | {
        "wait": f"{100 * entry['data_wait_share']:.0f}%",
        "mem": f"{entry['peak_memory_gib']:.1f}G",
    }
