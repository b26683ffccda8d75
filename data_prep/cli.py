"""``python -m data_prep``, also ``dct-vl data``: the verbs, and how they end on an error."""

import sqlite3
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from typer.core import TyperGroup

from data_prep import energon
from data_prep.blend import blend as write_blend
from data_prep.blend import parse_member
from data_prep.cli_convert import cambrian, convert
from data_prep.cli_stats import NUM_CORES, Root, Workers, preview, stats
from data_prep.drawn.dataset import JSON_NAME, DrawnSummary, write_drawn_dataset
from data_prep.drawn.entries import COLLECTIONS, Detail
from data_prep.executor import ExecutorError
from data_prep.model_folder import FolderError
from data_prep.options import OptionError
from data_prep.remote import folder_at, readable
from data_prep.shards import shard_names
from data_prep.sources import SourceError
from data_prep.split import describe
from data_prep.verify import verify as verify_shards
from data_prep.workspace import WorkspaceError

#: OSError, sqlite3.Error: a full disk or missing rights; what is finished stays, a rerun resumes.
FIXABLE = (
    *(OSError, sqlite3.Error, ExecutorError, FolderError),
    *(OptionError, SourceError, WorkspaceError),
)


class OneLineErrors(TyperGroup):
    """Prints an error that the user can fix as one line and exits with status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            typer.echo("interrupted; the same command resumes from here", err=True)
            raise typer.Exit(130) from error
        except BrokenPipeError:
            raise  # the reader of the output has gone: Click ends without a word
        except FIXABLE as error:
            typer.echo(f"error: {readable(str(error))}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=OneLineErrors,
    help="Turn raw image-text datasets into shards for Energon.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def draw(
    output_dir: Annotated[Path, typer.Option(help="Folder for the JSON and the tars.")],
    num_entries: Annotated[int, typer.Option(help="Number of entries, at least 8.")] = 2000,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    image_size: Annotated[int, typer.Option(help="Shorter side in pixels.")] = 168,
    detail: Annotated[
        str,
        typer.Option(help="coarse, fine (details of 1–7 px), numbers or lessons (small print)."),
    ] = "coarse",
    defects: Annotated[bool, typer.Option(help="Include missing, broken, rotated images.")] = True,
    workers: Workers = 1,
) -> None:
    """Draw a synthetic dataset in the Cambrian layout; its answers can be seen in the images."""
    level = _detail(detail)
    with Progress(console=Console(stderr=True), transient=True) as bar:
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
    Console().print(_drawn_table(output_dir / JSON_NAME, summary))


app.command()(cambrian)
app.command()(convert)


@app.command()
def prepare(
    root: Annotated[
        Path,
        typer.Argument(
            help="Folder with the shards, or its s3:// URL.", parser=folder_at, metavar="ROOT"
        ),
    ],
    split: Annotated[
        str | None,
        typer.Option(help="Ratio of train,val,test (default: as before, else 8,1,1 or what fits)."),
    ] = None,
    replace_split: Annotated[
        bool, typer.Option("--replace-split", help="Replace a split.yaml written by hand.")
    ] = False,
    num_workers: Workers = NUM_CORES,
) -> None:
    """Make the shards ready for Energon: its own `prepare`, without the questions."""

    def say(num_shards: int) -> None:
        typer.echo(f"energon prepare over {num_shards} shards; about a minute for 5,000")

    prepared = energon.prepare(
        root, split, num_workers=num_workers, replace_split=replace_split, on_begin=say
    )
    for name, places in prepared.damage.items():
        listed = "; ".join([*places[:3], *(["…"] if len(places) > 3 else [])])
        typer.echo(f"warning: {name} is damaged at {len(places)} places ({listed})", err=True)
    if prepared.damage:
        typer.echo(
            f"warning: {len(prepared.damage)} of {len(shard_names(root))} shards are damaged; "
            "what is at those places is lost, the rest is used: copy those shards "
            "again, or make them again",
            err=True,
        )
    shown = readable(str(root))
    state = "is prepared" if prepared.again else "was prepared like this already"
    typer.echo(
        f"{shown} {state}; shards: {describe(prepared.shards)}; {prepared.samples:,} samples"
    )
    faulty = [one for one in prepared.first if one.fault]
    if faulty:
        one = faulty[0]
        typer.echo(
            f"warning: training cannot use {len(faulty)} of the first {len(prepared.first)} "
            f"samples: {one.shard}, {one.key}: {one.fault}; `python -m data_prep stats {shown}` "
            "counts all of them",
            err=True,
        )
    if prepared.kept_split:
        unused = f", which uses {prepared.unused} shards nowhere" if prepared.unused else ""
        typer.echo(
            f"the parts are those of {shown}/.nv-meta/split.yaml{unused}; --replace-split "
            "divides the shards anew"
        )


app.command()(stats)


@app.command()
def verify(root: Root, workers: Workers = NUM_CORES) -> None:
    """Check every shard against the manifest and Energon's index."""
    num_problems = num_shards = num_samples = 0
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


app.command()(preview)


@app.command()
def blend(
    target: Annotated[Path, typer.Argument(help="Metadataset to write, a .yaml file.")],
    folders: Annotated[
        list[str], typer.Argument(metavar="FOLDER[=WEIGHT]...", help="Prepared folders.")
    ],
) -> None:
    """Combine prepared folders in one dataset; without weights every sample is equally likely."""
    for one in write_blend(target, [parse_member(text) for text in folders]):
        counts = ", ".join(f"{part} {count:,}" for part, count in one.samples.items())
        typer.echo(f"{one.share:6.1%} of the training samples from {one.root} ({counts})")
    typer.echo(f"blend: {target}; give it to training as its data path")


def _detail(value: str) -> Detail:
    for level in COLLECTIONS:
        if value == level:
            return level
    raise typer.BadParameter(f"detail is {value!r}, expected one of: {', '.join(COLLECTIONS)}")


def _drawn_table(path: Path, summary: DrawnSummary) -> Table:
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
