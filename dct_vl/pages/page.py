"""The frame of every page: Jinja templates, the style sheet, number formats, pictures in place."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from PIL import Image

from data_prep.durable import write_durably

_FRAME = "dct_vl.pages"


def write_page(
    path: str | Path,
    template: str,
    context: Mapping[str, Any],
    *,
    package: str,
) -> None:
    """Render a template of `package`/templates that extends page.html.jinja, and write it whole.

    Args:
        path: of the page; a reader sees the page before or the one after, never a part.
        template: file name. It gets `context`, the macros of parts.html.jinja by import, and the
            filters `figure`, `percent`, `amount`, `duration` and `zip`.
        context: values; text in them is escaped.
        package: of the template.
    """
    loaders = [PackageLoader(name) for name in dict.fromkeys((package, _FRAME))]
    environment = Environment(
        loader=ChoiceLoader(loaders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(figure=figure, percent=percent, amount=amount, duration=duration)
    environment.filters["zip"] = partial(zip, strict=True)
    style = (files(_FRAME) / "templates" / "page.css").read_text()
    html = environment.get_template(template).render(style=style, **context)
    write_durably(Path(path), html.encode())


def picture_uri(picture: np.ndarray) -> str:
    """A data: address of a PNG.

    Args:
        picture: uint8 (height, width, 3), RGB.
    """
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
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
