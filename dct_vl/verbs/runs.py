"""The verbs that read a run's folder: `ledger` and `summary`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

RunDir = Annotated[Path, typer.Argument(help="A run's folder, LOG_DIR/EXPERIMENT_NAME.")]


@contextmanager
def plain_errors() -> Iterator[None]:
    """Errors that name the fault and the fix are one line, without a stack."""
    try:
        yield
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


def ledger(run_dir: RunDir) -> None:
    """Which samples a run consumed, and how often."""
    from dct_vl.runs.ledger import summarize

    with plain_errors():
        typer.echo(summarize(run_dir))


def summary(run_dir: RunDir) -> None:
    """Write the run's page, summary.html, anew."""
    from dct_vl.training.report.run_summary import write_run_summary

    with plain_errors():
        typer.echo(write_run_summary(run_dir))
