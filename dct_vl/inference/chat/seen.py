"""What the model sees of a picture or a video."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from dct_tokenizer.pixels import resize_frames
from dct_tokenizer.show import View, look, write_html, write_png
from dct_tokenizer.show.figure import psnr_text
from dct_vl.inference.chat.conversation import Medium
from dct_vl.inference.generate.engine import Engine
from dct_vl.inputs.clips import make_clip
from dct_vl.inputs.images import decode_rgb
from dct_vl.inputs.video import read_frames, read_header

#: frames of a video that are shown side by side
_MOST_FRAMES = 8
#: pixels between the two rows
_GAP = 12


def describe(medium: Medium, engine: Engine) -> str:
    """Size and number of visual tokens, for people.

    Raises:
        ValueError: the file is damaged, or cannot be cut by the engine's tokenizer.
    """
    if medium.kind == "image":
        frames = decode_rgb(medium.data)
        height, width = frames.shape[1:3]
        plan = engine.visual.refine(frames, engine.visual.plan(height, width))
        size = f"{width} x {height} pixels"
    else:
        header = read_header(medium.data)
        clip = make_clip(header, engine.video_rules)
        plan = clip.plan(engine.visual)
        size = f"{header.width} x {header.height} pixels, {clip.num_frames} frames taken"
    at_most = "at most " if medium.kind == "video" else ""
    return f"{medium.name}: {size}, {at_most}{plan.num_llm_tokens} visual tokens"


def numbers(view: View) -> str:
    """Tokens and loss of a view in a line."""
    height, width = view.image.shape[:2]
    loss = psnr_text(view.psnr)
    return (
        f"{view.tokenizer.name}: {view.plan.num_llm_tokens} visual tokens, "
        f"{width} x {height} pixels, {loss if math.isinf(view.psnr) else f'PSNR {loss}'}"
    )


def write_seen(medium: Medium, engine: Engine, path: Path) -> str:
    """Draw a picture, or frames of a video above what is seen of them; returns what was written.

    Args:
        medium: of a conversation.
        engine: whose tokenizer looks.
        path: PNG to write; a picture's page with a slider has the same name in .html.

    Raises:
        ValueError, OSError: the medium is damaged, or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if medium.kind == "video":
        return _write_strip(medium, engine, path)
    view = look(engine.visual, decode_rgb(medium.data)[0])
    write_png([view], path)
    page = path.with_suffix(".html")
    write_html([view], page, medium.name)
    return f"{numbers(view)}: {path}, {page}"


def _write_strip(medium: Medium, engine: Engine, path: Path) -> str:
    clip = make_clip(read_header(medium.data), engine.video_rules)
    plan = clip.plan(engine.visual)
    taken = read_frames(medium.data, clip.num_frames, plan.height, plan.width).frames
    if len(taken) < clip.num_frames:
        plan = clip.plan(engine.visual, len(taken))
    plan = engine.visual.refine(taken, plan)
    seen = engine.visual.seen(taken, plan)
    # a tokenizer may see less than what it plans: both rows have one size
    rows = (
        resize_frames(taken, plan.height, plan.width),
        resize_frames(seen, plan.height, plan.width),
    )
    places = np.linspace(0, len(taken) - 1, min(_MOST_FRAMES, len(taken))).round().astype(int)
    strips = [np.concatenate([row[place] for place in places], axis=1) for row in rows]
    gap = np.full((_GAP, *strips[0].shape[1:]), 255, np.uint8)
    Image.fromarray(np.concatenate([strips[0], gap, strips[1]])).save(path)
    tokens = f"{engine.visual.name}: {plan.num_llm_tokens} visual tokens"
    return f"{tokens}, {len(taken)} frames, above as they are, below as seen: {path}"
