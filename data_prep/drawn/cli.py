"""The command ``python -m data_prep draw``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from data_prep.drawn.dataset import JSON_NAME, DrawnSummary, write_drawn_dataset
from data_prep.drawn.entries import COLLECTIONS, Detail


def draw(
    output_dir: Annotated[Path, typer.Option(help="Folder for the JSON and the tars.")],
    num_entries: Annotated[int, typer.Option(help="Elements of the JSON, at least 8.")] = 2000,
    seed: Annotated[int, typer.Option(help="Another seed, other pictures.")] = 0,
    image_size: Annotated[int, typer.Option(help="Shorter side in pixels.")] = 168,
    detail: Annotated[
        str,
        typer.Option(help="coarse, fine (details of 1–7 px), numbers or lessons (small print)."),
    ] = "coarse",
    defects: Annotated[bool, typer.Option(help="Plant missing, broken, rotated files.")] = True,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw.")] = 1,
) -> None:
    """Draw a dataset in the Cambrian layout whose answers are in the pictures."""
    level = _detail(detail)
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("drawing", total=num_entries)
        try:
            summary = write_drawn_dataset(
                output_dir,
                num_entries=num_entries,
                seed=seed,
                image_size=image_size,
                detail=level,
                plant_defects=defects,
                num_workers=workers,
                progress=lambda done: bar.update(task, completed=done),
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    Console().print(_table(output_dir / JSON_NAME, summary))


def _detail(value: str) -> Detail:
    for level in COLLECTIONS:
        if value == level:
            return level
    raise typer.BadParameter(f"detail is {value!r}, expected one of: {', '.join(COLLECTIONS)}")


def _table(path: Path, summary: DrawnSummary) -> Table:
    table = Table(title=f"drawn: {path}", show_header=False)
    planted = {name: len(ids) for name, ids in summary.planted.items()}
    for label, value in (
        ("entries", summary.num_entries),
        ("usable", summary.num_usable),
        ("turns", summary.num_turns),
        ("entries by kind", _counts(summary.by_kind)),
        ("files by tar", _counts(summary.by_source)),
        ("entries by format", _counts(summary.by_format)),
        ("planted", _counts(planted)),
    ):
        table.add_row(label, str(value))
    return table


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items())
