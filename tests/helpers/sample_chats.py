"""Samples for the tests of the training package, as they lie in shards and as messages."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from PIL import Image

from dct_vl.inputs.samples import CrudeChat

#: a row with two pictures of different sizes and two turns, one of text, one with one picture
ROWS: tuple[dict[str, Any], ...] = (
    {
        "turns": [
            ("human", "<image>\nWhat is here? <image> And here?"),
            ("gpt", "A red circle, then a blue one."),
            ("human", "Where is it?"),
            ("gpt", "top left"),
        ],
        "sizes": [(84, 112), (170, 61)],
    },
    {"turns": [("human", "Say the word moon."), ("gpt", "moon")], "sizes": []},
    {"turns": [("human", "How high is bar B?\n<image>"), ("gpt", "5")], "sizes": [(56, 56)]},
)


def picture(height: int, width: int, seed: int) -> bytes:
    """PNG bytes of random pixels, so that every patch differs from every other."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(row: dict[str, Any]) -> tuple[bytes, ...]:
    """The encoded pictures of a row."""
    return tuple(picture(h, w, seed=h + w) for h, w in row["sizes"])


def crude(row: dict[str, Any], key: str = "key") -> CrudeChat:
    """A row as the cooker delivers it."""
    turns = [{"from": who, "value": text} for who, text in row["turns"]]
    return CrudeChat(
        __key__=key,
        __restore_key__=(),
        record=json.dumps({"conversations": turns}).encode(),
        images=pictures(row),
    )


def messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A row as a user of transformers would write it; its marks stand in the first turn."""
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    out = []
    for who, text in row["turns"]:
        content: list[dict[str, str]] = []
        for number, piece in enumerate(text.split("<image>")):
            content += [{"type": "image"}] if number else []
            piece = piece.strip("\n")
            content += [{"type": "text", "text": piece}] if piece else []
        out.append({"role": roles[who], "content": content})
    return out
