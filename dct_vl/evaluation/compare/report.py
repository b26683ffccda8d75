"""compare.html and compare.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import orjson
from markupsafe import Markup

from data_prep.durable import write_durably
from dct_vl.evaluation.compare.figures import Comparison, SetFigures, as_json, collect
from dct_vl.evaluation.compare.gallery import GalleryEntry, disagreements
from dct_vl.evaluation.compare.intervals import NUM_RESAMPLES
from dct_vl.evaluation.compare.pairing import RunScore
from dct_vl.evaluation.compare.runs import ComparedRun
from dct_vl.pages.charts import Line, Point, line_chart, point_chart
from dct_vl.pages.page import figure, percent, render_page
from dct_vl.runs.series import column

PAGE_NAME = "compare.html"
JSON_NAME = "compare.json"


@dataclass(frozen=True, kw_only=True)
class SetSection:
    """A set as the page shows it."""

    figures: SetFigures
    #: (what it shows, SVG)
    charts: tuple[tuple[str, Markup], ...]
    disagreements: tuple[GalleryEntry, ...]


def write_comparison(
    runs: Sequence[ComparedRun],
    output: str | Path,
    *,
    baseline: str | None = None,
    num_disagreements: int = 12,
    data: Mapping[str, Path] | None = None,
) -> Path:
    """Write the page, which needs no other file, and its figures as JSON; return the page's path.

    Args:
        output: folder, made where it is missing.
        baseline: name of the run that the others are compared with; the first by default.
        num_disagreements: samples of each set that are shown with their images, at most.
        data: folders or files of benchmarks by their name, for the images of their questions.

    Raises:
        ValueError: see `collect`; or `data` names no set, or is not that benchmark's; or `output`
            is a file.
    """
    folder = Path(output)
    if any(path.exists() and not path.is_dir() for path in (folder, *folder.parents)):
        raise ValueError(f"{folder} is, or lies below, a file: --output names a folder")
    found = collect(runs, baseline)
    given = dict(data or {})
    sets = [one.paired.name for one in found.sets]
    for name in given.keys() - set(sets):
        raise ValueError(f"--data names {name!r}; the runs are compared on {', '.join(sets)}")
    sections = [
        SetSection(
            figures=one,
            charts=tuple(_cost_charts(f"set{number}", found, one)),
            disagreements=tuple(
                disagreements(one.paired, runs, num_disagreements, given.get(one.paired.name))
            ),
        )
        for number, one in enumerate(found.sets)
    ]
    context = {
        "found": found,
        "sections": sections,
        "loss_charts": _loss_charts(found),
        "written": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "score_text": score_text,
        "difference_text": difference_text,
        "num_resamples": NUM_RESAMPLES,
    }
    page = render_page("compare.html.jinja", context, package="dct_vl.evaluation.compare")
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / PAGE_NAME, page.encode())
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    write_durably(folder / JSON_NAME, orjson.dumps(as_json(found), option=options))
    return folder / PAGE_NAME


def score_text(value: float, *, is_share: bool) -> str:
    """53.4 % of a share, 1.24 of another score."""
    return percent(value) if is_share else figure(value)


def difference_text(value: float, *, is_share: bool) -> str:
    """A signed difference: +1.2 (percentage points) of a share."""
    shown = f"{100 * value:+.1f}" if is_share else f"{value:+.3g}"
    return shown.replace("-", "−")


def _cost_charts(name: str, found: Comparison, one: SetFigures) -> list[tuple[str, Markup]]:
    """Score against what it costs; a chart needs the cost of at least one run."""
    costs = [facts.run.cost for facts in found.runs]
    axes: list[tuple[str, str, list[float | None]]] = [
        ("tokens", "visual tokens a sample", [score.visual_tokens for score in one.scores]),
        ("flops", "GFLOP a sample, forward", [cost.gflops for cost in costs]),
        ("rate", "training samples a second", [cost.samples_per_second for cost in costs]),
        ("memory", "peak memory, GiB", [cost.peak_memory_gib for cost in costs]),
    ]
    scale = 100 if one.paired.is_share else 1
    y_label = one.paired.metric + (", %" if one.paired.is_share else "")
    charts = []
    for short, x_label, values in axes:
        points = [
            _point(cost, score, scale, facts.color)
            for cost, score, facts in zip(values, one.scores, found.runs, strict=True)
            if cost is not None
        ]
        if points:
            shown = f"{one.paired.metric} of each run against {x_label}"
            labels = {"x_label": x_label, "y_label": y_label, "description": shown}
            charts.append((x_label, point_chart(f"{name}-{short}", points, **labels)))
    return charts


def _point(cost: float, score: RunScore, scale: float, color: int) -> Point:
    low, high = (None, None) if score.interval is None else (scale * end for end in score.interval)
    return Point(x=cost, y=scale * score.score, low=low, high=high, color=color)


def training_line(
    run: ComparedRun, color: int, *, is_solid: bool, label: str | None = None
) -> Line:
    """Moving mean of a run's training loss."""
    return Line(
        label=label,
        x=column(run.steps, "step"),
        y=column(run.steps, "loss"),
        color=color,
        style="solid" if is_solid else "dashed",
        smoothed="mean",
    )


def validation_line(
    run: ComparedRun,
    color: int,
    *,
    label: str | None = None,
    style: Literal["solid", "points"] = "solid",
) -> Line:
    """A run's validation losses."""
    steps, losses = (column(run.validation, name) for name in ("step", "loss"))
    return Line(label=label, x=steps, y=losses, color=color, style=style)


def _loss_charts(found: Comparison) -> list[tuple[str, Markup]]:
    training = [
        training_line(facts.run, facts.color, is_solid=facts.is_baseline) for facts in found.runs
    ]
    validation = [
        validation_line(facts.run, facts.color) for facts in found.runs if facts.run.validation
    ]
    curves = (
        ("Training loss: moving mean, single steps behind it", "loss", "Training", training),
        ("Validation loss", "val-loss", "Validation", validation),
    )
    return [
        (
            caption,
            line_chart(name, lines, y_label="loss", description=f"{kind} loss over steps"),
        )
        for caption, name, kind, lines in curves
        if lines
    ]
