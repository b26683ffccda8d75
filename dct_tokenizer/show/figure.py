"""Draw the comparison as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dct_tokenizer.show.views import View

#: Colour of a square's outline by its side in pixels.
SQUARE_COLOURS = {28: "#ffd60a", 56: "#34c759", 112: "#0a84ff"}
#: Grey levels at which the error map saturates.
ERROR_SCALE = 32
TITLES = ("image", "what the model sees", "absolute error", "luma energy kept by band")


def psnr_text(psnr: float) -> str:
    """PSNR as text."""
    return "no loss" if np.isinf(psnr) else f"{psnr:.1f} dB"


def draw_squares(axes: Any, view: View) -> None:
    """The squares of an adaptive plan over the image."""
    boxes = view.plan.token_boxes
    if boxes is None:
        return
    for _, top, left, side in boxes.tolist():
        colour = SQUARE_COLOURS[side]
        axes.add_patch(
            Rectangle((left - 0.5, top - 0.5), side, side, fill=False, edgecolor=colour, lw=0.6)
        )


def write_png(views: Sequence[View], path: Path) -> None:
    """One row per tokenizer: image, what is seen, error, spectrum kept."""
    height, width = views[0].image.shape[:2]
    # A column of images is 3.9 inches wide; a strip still needs room for the bars.
    row_height = min(5.0, max(1.4, 3.9 * height / width))
    figure = Figure(figsize=(15, (row_height + 0.6) * len(views)), layout="constrained")
    grid = figure.subplots(len(views), 4, squeeze=False, width_ratios=[3.4, 3.4, 3.4, 2.6])
    for row, view in zip(grid, views, strict=True):
        plan = view.plan
        cells = "x".join(str(side) for side in plan.cell_shape[2:])
        row[0].imshow(view.image)
        row[0].set_title(f"{view.tokenizer.name}   {plan.num_llm_tokens} tokens", loc="left")
        row[0].set_xlabel(f"{plan.num_cells} cells of {cells}, {plan.wire_bytes / 1000:.0f} kB")
        row[1].imshow(view.seen)
        draw_squares(row[1], view)
        row[1].set_xlabel(f"PSNR {psnr_text(view.psnr)}, SSIM {view.ssim:.4f}")
        row[2].imshow(view.error, cmap="magma", vmin=0, vmax=ERROR_SCALE)
        row[2].set_xlabel(f"black 0, white {ERROR_SCALE} grey levels or more")
        for axes in row[:3]:
            axes.set_xticks([])
            axes.set_yticks([])
        bands = np.arange(len(view.kept_by_band))
        row[3].bar(bands, 100 * view.kept_by_band, width=0.8, color="#0a84ff")
        row[3].set_ylim(0, 100)
        row[3].set_ylabel("%")
        row[3].set_xlabel("band of a 28-pixel block")
        for axes, title in zip(row[1:], TITLES[1:], strict=True):
            axes.set_title(title, loc="left")
    figure.savefig(path, dpi=110)
