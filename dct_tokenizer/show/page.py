"""Write the comparison as a self-contained page with a slider between image and view."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import colormaps
from PIL import Image

from dct_tokenizer.cost import MODELS, plan_cost
from dct_tokenizer.show.figure import ERROR_SCALE, SQUARE_COLOURS, psnr_text
from dct_tokenizer.show.views import View


def data_uri(image: np.ndarray) -> str:
    """A lossless WebP of uint8 (H, W, 3) as a data URI."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="WEBP", lossless=True)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _row(view: View) -> dict[str, object]:
    plan = view.plan
    cost = plan_cost(view.tokenizer, plan, MODELS["2b"])
    error = colormaps["magma"](np.clip(view.error / ERROR_SCALE, 0, 1), bytes=True)[..., :3]
    height, width = view.image.shape[:2]
    boxes = [] if plan.token_boxes is None else plan.token_boxes[:, 1:].tolist()
    return {
        "name": view.tokenizer.name,
        "width": width,
        "height": height,
        "image": data_uri(view.image),
        "seen": data_uri(view.seen),
        "error": data_uri(np.ascontiguousarray(error)),
        "boxes": [(top, left, side, SQUARE_COLOURS[side]) for top, left, side in boxes],
        "bands": [round(100 * part, 1) for part in view.kept_by_band.tolist()],
        "numbers": {
            "LLM tokens": f"{plan.num_llm_tokens:,}",
            "ViT cells": f"{plan.num_cells:,}",
            "prefill, 2B": f"{cost.total_flops / 1e12:.2f} TFLOP",
            "KV cache, 2B": f"{cost.kv_bytes / 1e6:.1f} MB",
            "on the wire": f"{plan.wire_bytes / 1e3:.0f} kB",
            "PSNR": psnr_text(view.psnr),
            "SSIM": f"{view.ssim:.4f}",
        },
    }


def write_html(views: Sequence[View], path: Path, title: str) -> None:
    """Write the page. It loads nothing from anywhere."""
    environment = Environment(
        loader=PackageLoader("dct_tokenizer.show", "."), autoescape=True, undefined=StrictUndefined
    )
    template = environment.get_template("page.html.jinja")
    path.write_text(
        template.render(
            title=title,
            rows=[_row(view) for view in views],
            error_scale=ERROR_SCALE,
            square_colours=SQUARE_COLOURS,
        )
    )
