"""Matplotlib figures as SVG that belongs to the page around it.

The page's style sheet colors the figure, so that it follows the reader's light or dark scheme, and
nothing in it refers to anything outside the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

#: custom property of the style sheet → the color that stands for it while matplotlib draws
COLORS = {"text-soft": "#01fe01", "rule": "#01fe02"} | {
    f"series-{number}": f"#01fe{number + 2:02x}" for number in range(1, 9)
}
#: colors that curves and bars may have, by number
NUM_SERIES = sum(name.startswith("series-") for name in COLORS)
_ATTRIBUTE_WITH_ID = re.compile(r'(?<= )(id="|xlink:href="#|clip-path="url\(#)')
_STYLES: Any = {
    "axes.edgecolor": COLORS["text-soft"],
    "axes.grid": True,
    "axes.labelcolor": COLORS["text-soft"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 9,
    "grid.color": COLORS["rule"],
    "legend.frameon": False,
    "legend.labelcolor": COLORS["text-soft"],
    "lines.linewidth": 1.6,
    "savefig.facecolor": "none",
    # text stays text: the reader can select it and the page's font is used
    "svg.fonttype": "none",
    # names of runs and datasets may hold a dollar sign
    "text.parse_math": False,
    "text.color": COLORS["text-soft"],
    "xtick.color": COLORS["text-soft"],
    "ytick.color": COLORS["text-soft"],
}


@contextmanager
def drawing(name: str, *, height: float = 2.9) -> Iterator[Figure]:
    """A figure in the house style, 5.6 by `height` inches; call `figure_markup` inside the block.

    `name` makes the ids in the SVG differ from those of other figures on the page.
    """
    with matplotlib.rc_context({**_STYLES, "svg.hashsalt": name}):
        yield Figure(figsize=(5.6, height), layout="constrained")


def figure_markup(figure: Figure, name: str, description: str) -> Markup:
    """An `<svg>` element that scales with its container.

    Args:
        figure: of `drawing(name)`.
        name: letters, digits and dashes.
        description: for readers who cannot see it; any text.
    """
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(buffer, metadata=no_metadata)
    whole = buffer.getvalue()
    head, _, body = whole[whole.index("<svg") :].partition(">")
    view_box = re.search(r'viewBox="[^"]*"', head)
    assert view_box is not None
    body = _ATTRIBUTE_WITH_ID.sub(lambda match: match[0] + name + "-", body)
    body = body.replace("xlink:href", "href")
    for token, color in COLORS.items():
        body = body.replace(color, f"var(--{token})")
    opening = f'<svg class="chart" {view_box[0]} role="img" aria-label="{escape(description)}">'
    return Markup(opening + body)  # safe: matplotlib escapes the text that it draws
