"""Histograms as SVG, for pages that hold all they need."""

import io
from collections import Counter
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_COLOUR = "#3b6ea5"
_SIZE_INCHES = (5.2, 2.6)
_NUM_BARS = 40
#: bars of the least width that would fill the plot
_NARROWEST = 100


def histogram(counts: Counter[Any], *, label: str) -> str:
    """Bars over the values of a counter: one a value where there are few, else one a range.

    The 1 % farthest out is drawn into the outermost bars.
    """
    values = sorted(counts.items())
    low, high = _quantile(values, 0.005), _quantile(values, 0.995)
    inside: Counter[float] = Counter()
    for value, number in values:
        inside[min(max(value, low), high)] += number
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    if len(inside) <= _NUM_BARS:
        places = list(inside)
        axes.bar(places, list(inside.values()), width=bar_width(places), color=_COLOUR)
        if all(isinstance(place, int) for place in places):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        weights = list(inside.values())
        axes.hist(list(inside), bins=_NUM_BARS, weights=weights, color=_COLOUR)
    axes.set_xlabel(label)
    return _to_svg(figure)


def bar_width(places: list[float]) -> float:
    """Width of bars at ascending places: they do not touch, yet none is too thin to be seen.

    Two places may lie so close that their bars overlap; a bar that vanishes would be worse.
    """
    gap = min((b - a for a, b in pairwise(places)), default=1.0)
    return max(0.8 * gap, (places[-1] - places[0]) / _NARROWEST)


def bars(counts: dict[str, int], *, label: str, most: int = 20) -> str:
    """Horizontal bars by name, the longest on top; what is beyond ``most`` is joined."""
    shown = dict(list(counts.items())[:most])
    rest = sum(counts.values()) - sum(shown.values())
    if rest:
        shown[f"{len(counts) - most} more"] = rest
    figure = Figure(figsize=(_SIZE_INCHES[0], 0.8 + 0.26 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.barh(list(shown), list(shown.values()), color=_COLOUR)
    axes.bar_label(drawn, labels=[f" {value:,}" for value in shown.values()], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(label)
    return _to_svg(figure)


def _quantile(values: list[tuple[float, int]], share: float) -> float:
    total, seen = sum(number for _, number in values), 0
    for value, number in values:
        seen += number
        if seen >= share * total:
            return value
    return 0.0


def _to_svg(figure: Figure) -> str:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.xaxis.label.set_fontsize(9)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
