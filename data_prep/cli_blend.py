"""``python -m data_prep blend``."""

from pathlib import Path
from typing import Annotated

import typer

from data_prep.blend import blend as write_blend
from data_prep.blend import parse_member
from data_prep.cli_errors import plain_errors


def blend(
    target: Annotated[Path, typer.Argument(help="The metadataset to write, a .yaml file.")],
    folders: Annotated[
        list[str], typer.Argument(metavar="FOLDER[=WEIGHT]...", help="Prepared folders.")
    ],
) -> None:
    """Join prepared folders in one dataset; without weights every sample is equally likely."""
    with plain_errors():
        shares = write_blend(target, [parse_member(text) for text in folders])
    for one in shares:
        counts = ", ".join(f"{part} {count:,}" for part, count in one.samples.items())
        typer.echo(f"{one.share:6.1%} of the training samples from {one.root} ({counts})")
    typer.echo(f"blend: {target}; give it to training as its data path")
