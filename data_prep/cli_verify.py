"""``python -m data_prep verify``."""

import os
from pathlib import Path
from typing import Annotated

import typer

from data_prep.cli_errors import plain_errors
from data_prep.verify import verify as verify_shards


def verify(
    root: Annotated[Path, typer.Argument(help="Folder with the shards.")],
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = len(os.sched_getaffinity(0)),
) -> None:
    """Read every shard again and compare it with the manifest and with Energon's index."""
    num_problems = num_shards = num_samples = 0
    with plain_errors():
        for findings in verify_shards(root, workers=workers):
            num_shards += bool(findings.samples)
            num_samples += len(findings.samples)
            num_problems += len(findings.problems)
            for problem in findings.problems:
                typer.echo(f"{findings.name}: {problem}")
    if num_problems:
        typer.echo(f"error: {num_problems} problems in {root}", err=True)
        raise typer.Exit(1)
    typer.echo(f"{num_shards} shards with {num_samples:,} samples are as the manifest has them")
