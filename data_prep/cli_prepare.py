"""``python -m data_prep prepare``."""

import os
from pathlib import Path
from typing import Annotated

import typer

from data_prep.cli_errors import plain_errors
from data_prep.energon import describe
from data_prep.energon import prepare as energon_prepare


def prepare(
    root: Annotated[Path, typer.Argument(help="Folder with the shards.")],
    split: Annotated[str, typer.Option(help="Ratio of train,val,test.")] = "8,1,1",
    num_workers: Annotated[int, typer.Option(min=1, help="Processes that read shards.")] = (
        os.cpu_count() or 1
    ),
) -> None:
    """Make the shards ready for Energon, without questions (its own `prepare` underneath)."""
    with plain_errors():
        num_shards = len(list(root.glob("*.tar")))
        typer.echo(f"energon prepare over {num_shards} shards; about a minute for 5,000")
        prepared = energon_prepare(root, split, num_workers=num_workers)
    state = "is prepared" if prepared.again else "was prepared like this already"
    typer.echo(f"{root} {state}; shards: {describe(prepared.shards)}")
