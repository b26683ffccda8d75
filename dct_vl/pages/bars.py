"""Bars of counts: histograms of values, and horizontal bars by name."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from dct_vl.pages.svg import COLORS, drawing, figure_markup

_NUM_BARS = 40
#: bars of the least width that would fill the plot
_NARROWEST = 100
_COLOR = COLORS["series-1"]


def histogram(name: str, counts: Counter[Any], *, label: str, description: str) -> Markup:
    """Bars over the values of a counter: one a value where there are few, else one a range.

    The 1 % farthest out is drawn into the outermost bars. There is at least one value, a number;
    `label` says its quantity and unit, `name` is unique on the page.
    """
    values = sorted(counts.items())
    low, high = _quantile(values, 0.005), _quantile(values, 0.995)
    inside: Counter[float] = Counter()
    for value, number in values:
        inside[min(max(value, low), high)] += number
    with drawing(name, height=2.6) as figure:
        axes = figure.add_subplot(axisbelow=True)
        places, heights = list(inside), list(inside.values())
        if len(inside) <= _NUM_BARS:
            axes.bar(places, heights, width=bar_width(places), color=_COLOR)
            if all(isinstance(place, int) for place in places):
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            axes.hist(places, bins=_NUM_BARS, weights=heights, color=_COLOR)
        axes.set_xlabel(label)
        return figure_markup(figure, name, description)


def bar_width(places: list[float]) -> float:
    """Width of bars at ascending places: they do not touch, yet none is too thin to be seen.

    Two places may lie so close that their bars overlap; a bar that vanishes would be worse.
    """
    gap = min((b - a for a, b in pairwise(places)), default=1.0)
    return max(0.8 * gap, (places[-1] - places[0]) / _NARROWEST)


def bars(
    name: str, counts: dict[str, int], *, label: str, description: str, most: int = 20
) -> Markup:
    """Horizontal bars by name, in their order; what is beyond ``most`` is joined."""
    shown = dict(list(counts.items())[:most])
    rest = sum(counts.values()) - sum(shown.values())
    if rest:
        shown[f"{len(counts) - most} more"] = rest
    with drawing(name, height=0.8 + 0.26 * len(shown)) as figure:
        axes = figure.add_subplot(axisbelow=True)
        drawn = axes.barh(list(shown), list(shown.values()), color=_COLOR)
        axes.bar_label(drawn, labels=[f" {value:,}" for value in shown.values()])
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xlabel(label)
        return figure_markup(figure, name, description)


def _quantile(values: list[tuple[float, int]], share: float) -> float:
    total, seen = sum(number for _, number in values), 0
    for value, number in values:
        seen += number
        if seen >= share * total:
            return value
    return 0.0
