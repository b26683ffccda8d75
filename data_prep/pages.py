"""Self-contained HTML pages: figures, plots and samples of a folder of shards."""

import base64
from collections import Counter
from typing import Any

import jinja2
from markupsafe import Markup

from data_prep.gallery import Shown
from data_prep.plots import bars, histogram
from data_prep.stats import Tally

_LONGEST_TEXT = 400


def preview_page(title: str, samples: list[Shown]) -> str:
    """Samples with their pictures."""
    return _render("preview.html.jinja", title=title, samples=samples)


def stats_page(
    title: str,
    tally: Tally,
    stats: dict[str, Any],
    *,
    samples: list[Shown],
    manifest: dict[str, Any] | None,
) -> str:
    """Figures of ``stats.as_json`` with plots; ``manifest`` adds what preparation rejected."""
    return _render(
        "stats.html.jinja",
        title=title,
        stats=stats,
        plots=_plots(tally, stats),
        samples=samples,
        manifest=manifest,
    )


def _plots(tally: Tally, stats: dict[str, Any]) -> list[tuple[str, str]]:
    plots = [("Samples by source", bars(stats["sources"], label="samples"))]
    if tally.sizes:
        heights: Counter[int] = Counter()
        widths: Counter[int] = Counter()
        aspects: Counter[float] = Counter()
        for (height, width), number in tally.sizes.items():
            heights[height] += number
            widths[width] += number
            aspects[width / height] += number
        plots += [
            ("Width", histogram(widths, label="pixels")),
            ("Height", histogram(heights, label="pixels")),
            ("Aspect ratio", histogram(aspects, label="width / height")),
            ("Size of an image", histogram(tally.image_kib, label="KiB")),
        ]
        # tokenizers that give the same counts share a plot
        alike: dict[tuple[tuple[int, int], ...], list[str]] = {}
        for name, tokens in stats["visual_tokens"].items():
            alike.setdefault(tuple(tokens["histogram"].items()), []).append(name)
        plots += [
            (
                "Visual tokens: " + ", ".join(names),
                histogram(Counter(dict(counts)), label="tokens an image"),
            )
            for counts, names in alike.items()
            if counts
        ]
    plots += [
        ("Questions with an answer", histogram(tally.turns, label="a sample")),
        ("Length of a question", histogram(tally.question_chars, label="characters")),
        ("Length of an answer", histogram(tally.answer_chars, label="characters")),
    ]
    return plots


def _render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("data_prep"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.filters["shorten"] = lambda text: (
        text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
    )
    assert environment.loader is not None
    css = environment.loader.get_source(environment, "page.css")[0]
    return environment.get_template(template).render(css=Markup(css), **values)
