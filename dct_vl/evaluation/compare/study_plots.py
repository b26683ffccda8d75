"""The plots of a study: accuracy against FLOPs, by source, and along the fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

_SIZE_INCHES = (13, 4.6)


def by_kind(source: str) -> tuple[str, int]:
    """Key that sorts sources such as `numbers_6px` by kind, then by the number in the name."""
    digits = "".join(c for c in source if c.isdigit())
    return source.replace(digits, ""), int(digits or 0)


def draw_study(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Three plots side by side into `path`; `rows` as in study.json."""
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    cost, kinds, steps = figure.subplots(1, 3)
    colors = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    palette = {row["tokenizer"]: colors[i % 20] for i, row in enumerate(rows)}
    _cost(cost, rows, palette)
    _sources(kinds, rows, palette)
    _curves(steps, rows, palette)
    handles, labels = steps.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def _cost(axes: Axes, rows: Sequence[dict[str, Any]], palette: dict[str, Any]) -> None:
    for row in rows:
        share = 100 * row["accuracy"]
        low, high = (100 * end for end in row["interval"] or 2 * [row["accuracy"]])
        whisker = [[max(0.0, share - low)], [max(0.0, high - share)]]
        style = {"fmt": "o", "color": palette[row["tokenizer"]], "capsize": 3}
        axes.errorbar(row["gflops"], share, yerr=whisker, **style)
    axes.set_xscale("log")
    for axis_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis_formatter(ScalarFormatter())
    axes.set_xlabel("GFLOP an image (forward, log scale)")
    axes.set_ylabel("words read, %")
    axes.set_title("accuracy against cost")
    axes.grid(alpha=0.3)


def _sources(axes: Axes, rows: Sequence[dict[str, Any]], palette: dict[str, Any]) -> None:
    sources = sorted(rows[0]["by_source"], key=by_kind)
    width = 0.8 / len(rows)
    for number, row in enumerate(rows):
        places = np.arange(len(sources)) - 0.4 + (number + 0.5) * width
        heights = [100 * row["by_source"][source] for source in sources]
        axes.bar(places, heights, width=width, color=palette[row["tokenizer"]])
    axes.set_xticks(range(len(sources)), sources, fontsize=8, rotation=40, ha="right")
    axes.set_title("words read by source, %")
    axes.grid(alpha=0.3, axis="y")


def _curves(axes: Axes, rows: Sequence[dict[str, Any]], palette: dict[str, Any]) -> None:
    for row in rows:
        color = palette[row["tokenizer"]]
        curves = [np.array(curve["points"]) for curve in row["curves"] if curve["points"]]
        if not curves:
            continue
        steps = curves[0][:, 0]
        values = 100 * np.stack([c[:, 1] for c in curves if len(c) == len(steps)])
        axes.plot(steps, values.mean(axis=0), color=color, label=row["tokenizer"], marker=".")
        if len(values) > 1:
            low, high = values.min(axis=0), values.max(axis=0)
            axes.fill_between(steps, low, high, color=color, alpha=0.2)
    axes.set_xlabel("steps after the switch (band: range over seeds)")
    axes.set_ylabel("words read in validation, %")
    axes.set_title("along the fine-tuning")
    axes.grid(alpha=0.3)
