"""The command ``dct-vl random-model``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, get_args

import typer

from dct_vl.model.random_model import ShapeName, write_random_model

#: Enough for every word to become one token where no corpus is given.
DEFAULT_CORPUS = ["What color is the shape? Where is it? How many are there?"] * 10


def random_model(
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    shape: Annotated[
        str,
        typer.Option(help="tiny, small (27 M parameters), 2b (4.4 GB), tiny25, 3b25 (7.5 GB)."),
    ] = "tiny",
    corpus: Annotated[
        Path | None,
        typer.Option(help="JSON in the LLaVA layout; its conversations train the tokenizer."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other weights.")] = 0,
) -> None:
    """Write a Qwen2-VL or Qwen2.5-VL folder with random weights that loads like the hub's."""
    name = next((n for n in get_args(ShapeName) if n == shape), None)
    if name is None:
        names = ", ".join(get_args(ShapeName))
        raise typer.BadParameter(f"shape is {shape!r}, expected one of {names}")
    texts = DEFAULT_CORPUS if corpus is None else conversation_texts(corpus)
    write_random_model(output, shape=name, corpus=texts, seed=seed)
    size = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    typer.echo(f"{output}: {shape}, {size / 1e6:,.1f} MB of weights, seed {seed}")


def conversation_texts(path: Path) -> Iterator[str]:
    """Every message of a JSON list of ``{"conversations": [{"from", "value"}…]}``.

    Raises typer.BadParameter where the file is not such a list.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        for entry in entries:
            for message in entry["conversations"]:
                yield message["value"].replace("<image>", "").strip()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise typer.BadParameter(
            f"{path} is not a JSON list of entries with conversations: {error!r}"
        ) from error
