"""The charts of the pages: lines over steps, areas that add up, and points with whiskers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from dct_vl.pages.svg import COLORS, drawing, figure_markup

#: below this many points each one is marked: a line through one point cannot be seen
_FEW_POINTS = 12
_AREA_POINTS = 300
#: ratio of the largest to the smallest place from which an axis is logarithmic
_LOG_FROM = 20
_MARKERS = "osD^vPX*"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve; points whose `y` is not finite are left out."""

    #: in the legend; None leaves the curve out of it
    label: str | None
    #: both float (num_points,)
    x: np.ndarray
    y: np.ndarray
    #: number of the page's series color, from 1 to `NUM_SERIES`
    color: int = 1
    #: points have no line, for few measurements
    style: Literal["solid", "dashed", "points"] = "solid"
    #: draw a moving mean or median, and the values themselves faintly behind it
    smoothed: Literal["mean", "median"] | None = None


@dataclass(frozen=True, kw_only=True)
class Area:
    """One layer of an area chart; `values` is float (num_points,)."""

    label: str
    values: np.ndarray
    color: Literal[1, 2, 3]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point with its whisker from `low` to `high`, as coordinates; none where they are None."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    color: int = 1


def line_chart(
    name: str,
    lines: Sequence[Line],
    *,
    y_label: str,
    description: str,
    x_label: str = "step",
    marks: Sequence[float] = (),
    from_zero: bool = False,
) -> Markup:
    """Curves over steps as inline SVG; `name` is unique on the page.

    Args:
        lines: at least one.
        x_label, y_label: quantity and unit.
        description: for readers who cannot see it.
        marks: where dotted vertical lines stand.
        from_zero: begin the vertical axis at 0 and end it where a few outliers leave the frame.
    """
    with drawing(name) as figure:
        axes = figure.subplots()
        for line in lines:
            _draw(axes, line)
        for place in marks:
            axes.axvline(place, color=COLORS["text-soft"], linewidth=0.9, linestyle=":")
        if from_zero:
            axes.set_ylim(0, frame_top(np.concatenate([line.y for line in lines])))
        _label(axes, x_label, y_label)
        return figure_markup(figure, name, description)


def area_chart(
    name: str, x: np.ndarray, areas: Sequence[Area], *, y_label: str, description: str
) -> Markup:
    """Moving medians on top of each other as inline SVG; arguments as of `line_chart`."""
    with drawing(name) as figure:
        axes = figure.subplots()
        if len(x) == 1:  # an area needs a width
            x = np.array([x[0] - 0.5, x[0] + 0.5])
            layers = [np.repeat(area.values, 2) for area in areas]
        else:
            # smoothed curves lose nothing by this, and the page of a long run stays small
            every = slice(None, None, -(-len(x) // _AREA_POINTS))
            layers = [smooth(area.values, "median")[every] for area in areas]
            x = x[every]
        floor = np.zeros(len(x))
        for area, layer in zip(areas, layers, strict=True):
            color = COLORS[f"series-{area.color}"]
            axes.fill_between(
                x, floor, floor + layer, color=color, alpha=0.75, linewidth=0, label=area.label
            )
            floor = floor + layer
        axes.set_ylim(0, frame_top(floor))
        _label(axes, "step", y_label)
        return figure_markup(figure, name, description)


def point_chart(
    name: str, points: Sequence[Point], *, x_label: str, y_label: str, description: str
) -> Markup:
    """Points as inline SVG, the horizontal axis logarithmic where they lie far apart.

    There is at least one; every color has a shape of its own. Arguments as of `line_chart`.
    """
    with drawing(name) as figure:
        axes = figure.subplots()
        for point in points:
            whisker = None
            if point.low is not None and point.high is not None:
                whisker = [[max(0.0, point.y - point.low)], [max(0.0, point.high - point.y)]]
            axes.errorbar(
                point.x,
                point.y,
                yerr=whisker,
                fmt=_MARKERS[(point.color - 1) % len(_MARKERS)],
                color=COLORS[f"series-{point.color}"],
                markersize=7,
                capsize=3,
            )
        places = [point.x for point in points]
        if min(places) > 0 and max(places) > _LOG_FROM * min(places):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(ScalarFormatter())
        else:
            axes.margins(x=0.12)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_axisbelow(True)
        return figure_markup(figure, name, description)


def _draw(axes: Axes, line: Line) -> None:
    color = COLORS[f"series-{line.color}"]
    marker = "o" if line.style == "points" or len(line.x) <= _FEW_POINTS else None
    linestyle = {"solid": "-", "dashed": "--", "points": "none"}[line.style]
    x, y = thin(line.x, line.y)
    if line.smoothed and len(line.x) > _FEW_POINTS:
        axes.plot(x, y, color=color, alpha=0.4, linewidth=0.8)
        x, y = thin(line.x, smooth(line.y, line.smoothed))
    axes.plot(
        x, y, color=color, marker=marker, markersize=4.5, linestyle=linestyle, label=line.label
    )


def _label(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.set_axisbelow(True)
    num_labels = len(axes.get_legend_handles_labels()[0])
    if num_labels:
        axes.figure.legend(loc="outside upper right", ncols=3 if num_labels <= 3 else 2)


def smooth(values: np.ndarray, by: Literal["mean", "median"]) -> np.ndarray:
    """Moving mean or median over about 3 % of the run around each step; NaN stays NaN."""
    window = max(5, 2 * (len(values) // 60) + 1)
    series = pd.Series(values).rolling(window, center=True, min_periods=1)
    average = series.mean() if by == "mean" else series.median()
    return np.where(np.isnan(values), np.nan, average.to_numpy())


def thin(x: np.ndarray, y: np.ndarray, limit: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` finite points that keep every peak: lowest and highest of each stretch."""
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= limit:
        return x, y
    chosen: set[int] = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), limit // 2 - 1):
        chosen.update((int(stretch[y[stretch].argmin()]), int(stretch[y[stretch].argmax()])))
    order = sorted(chosen)
    return x[order], y[order]


def frame_top(values: np.ndarray) -> float | None:
    """Upper end of a vertical axis that a few outliers would flatten; None: none are there."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    top = 1.5 * float(np.quantile(finite, 0.95))
    return top if 0 < top < finite.max() else None
