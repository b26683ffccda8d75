"""The frame of every HTML report: Jinja templates, style sheet, number formats, inlined images."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from PIL import Image


def render_page(template: str, context: Mapping[str, Any], *, package: str) -> str:
    """Render a template of `package`/templates that extends page.html.jinja.

    It gets `context`, in which text is escaped, the macros of parts.html.jinja by import, and the
    filters `figure`, `percent`, `amount`, `duration` and `zip`.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(__package__)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(figure=figure, percent=percent, amount=amount, duration=duration)
    environment.filters["zip"] = partial(zip, strict=True)
    style = (files(__package__) / "templates" / "page.css").read_text()
    return environment.get_template(template).render(style=style, **context)


def image_uri(image: np.ndarray, longest_side: int = 512) -> str:
    """A data: address of a PNG of an RGB image, uint8 (height, width, 3).

    Images whose longest side has more pixels are reduced, so that pages stay small.
    """
    png = Image.fromarray(image)
    scale = longest_side / max(png.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in png.size)
        png = png.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    png.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def figure(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits without an exponent where that stays short; – for no value."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        decimals = 0 if value == 0 else max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return f"{value:,.{decimals}f}"
    return f"{value:.{digits - 1}e}"


def percent(share: float | None) -> str:
    """A share of 1 as a percentage: 0.534 → 53.4 %."""
    return "–" if share is None else f"{100 * share:.1f}\u00a0%"


def amount(count: int) -> str:
    """A whole number with thousands apart."""
    return f"{count:,}"


def duration(seconds: float) -> str:
    """Seconds as 0.42 s, 42 s, 3 min 5 s or 2 h 10 min, with spaces that do not break."""
    whole = round(seconds)
    if whole < 60:
        text = f"{figure(seconds, 2)} s"
    elif whole < 3600:
        text = f"{whole // 60} min {whole % 60} s"
    else:
        text = f"{whole // 3600} h {whole % 3600 // 60} min"
    return text.replace(" ", "\u00a0")
