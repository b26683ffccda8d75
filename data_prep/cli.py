"""``python -m data_prep``, also ``dct-vl data``: the verbs, and how they end on an error."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from typer.core import TyperGroup

from data_prep import energon
from data_prep.cli_stats import NUM_CORES, Root, Workers, preview, stats
from data_prep.drawn.dataset import JSON_NAME, DrawnSummary, write_drawn_dataset
from data_prep.drawn.entries import COLLECTIONS, Detail
from data_prep.executor import Executor, ExecutorError, InProcessExecutor, ProcessExecutor
from data_prep.manifest import Summary
from data_prep.options import (
    DEFAULT_SHARD_SIZE,
    OptionError,
    Options,
    TextOnly,
    Verify,
    parse_presize,
)
from data_prep.progress import Reporter
from data_prep.quarantine import Reason, missing_by_folder
from data_prep.run import Job, run
from data_prep.shards import shard_names
from data_prep.sources import SourceError
from data_prep.verify import verify as verify_shards
from data_prep.workspace import WorkspaceError


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
        except (OSError, ExecutorError, OptionError, SourceError, WorkspaceError) as error:
            # OSError: a full disk or missing rights; finished shards stay, and a rerun resumes
            typer.echo(f"error: {error}", err=True)
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


@app.command()
def cambrian(
    data_dir: Annotated[
        Path, typer.Option(help="Folder with the JSON and the image tars or folders.")
    ],
    output_dir: Annotated[Path, typer.Option(help="Folder for the shards.")],
    json: Annotated[
        Path | None, typer.Option(help="JSON or JSONL of the entries, if there are several.")
    ] = None,
    workers: Workers = NUM_CORES,
    engine: Annotated[
        str,
        typer.Option(
            help="local (processes) or ray (the cluster of RAY_ADDRESS, else one started here)."
        ),
    ] = "local",
    verify: Annotated[
        str, typer.Option(help="Check of JPEGs: structure, decode or none.")
    ] = "decode",
    text_only: Annotated[
        str, typer.Option(help="Entries without an image: drop or keep.")
    ] = "drop",
    reencode: Annotated[
        bool, typer.Option("--reencode", help="Re-encode every image as Pillow does by default.")
    ] = False,
    presize: Annotated[
        str | None,
        typer.Option(
            metavar="MINPIXELS:MAXPIXELS[:FACTOR]",
            help="Store images at the size that the model sees.",
        ),
    ] = None,
    shard_size: Annotated[
        int | None,
        typer.Option(help=f"Samples per shard (default: {DEFAULT_SHARD_SIZE}; small sets: fewer)."),
    ] = None,
    shard_bytes: Annotated[
        int | None, typer.Option(help="Maximum bytes of source images per shard.")
    ] = None,
    shuffle_seed: Annotated[
        int | None,
        typer.Option(help="Shuffle the entries with this seed (default: no shuffle)."),
    ] = None,
    max_image_pixels: Annotated[
        int, typer.Option(help="Reject images with more pixels.")
    ] = Options.max_image_pixels,
    retry_quarantined: Annotated[
        bool, typer.Option("--retry-quarantined", help="Retry only what was rejected before.")
    ] = False,
) -> None:
    """Convert a dataset in the layout of Cambrian737k to shards; a rerun resumes."""
    reporter = Reporter()
    options = Options(
        verify=cast(Verify, verify),
        text_only=cast(TextOnly, text_only),
        reencode=reencode,
        presize=parse_presize(presize),
        shard_size=shard_size,
        shard_bytes=shard_bytes,
        shuffle_seed=shuffle_seed,
        max_image_pixels=max_image_pixels,
    )
    job = Job(
        data_dir=data_dir,
        output_dir=output_dir,
        json=json,
        options=options,
        retry_quarantined=retry_quarantined,
    )
    summary = run(job, _executor(engine, workers), reporter)
    _say_summary(summary, output_dir, reporter)
    if not summary.kept:
        raise typer.Exit(1)


@app.command()
def prepare(
    root: Root,
    split: Annotated[str, typer.Option(help="Ratio of train,val,test.")] = "8,1,1",
    num_workers: Workers = NUM_CORES,
) -> None:
    """Make the shards ready for Energon: its own `prepare`, without the questions."""
    num_shards = len(shard_names(root))
    typer.echo(f"energon prepare over {num_shards} shards; about a minute for 5,000")
    prepared = energon.prepare(root, split, num_workers=num_workers)
    for name, places in prepared.damage.items():
        listed = "; ".join([*places[:3], *(["…"] if len(places) > 3 else [])])
        typer.echo(f"warning: {name} is damaged at {len(places)} places ({listed})", err=True)
    if prepared.damage:
        typer.echo(
            f"warning: {len(prepared.damage)} of {num_shards} shards are damaged; what is at those "
            "places is lost, the rest is used: copy those shards again, or make them again",
            err=True,
        )
    state = "is prepared" if prepared.again else "was prepared like this already"
    typer.echo(
        f"{root} {state}; shards: {energon.describe(prepared.shards)}; {prepared.samples:,} samples"
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
    for one in energon.blend(target, [energon.parse_member(text) for text in folders]):
        counts = ", ".join(f"{part} {count:,}" for part, count in one.samples.items())
        typer.echo(f"{one.share:6.1%} of the training samples from {one.root} ({counts})")
    typer.echo(f"blend: {target}; give it to training as its data path")


def _executor(name: str, workers: int) -> Executor:
    if name == "ray":
        # an optional extra, and a second to import
        from data_prep.ray_executor import RayExecutor

        return RayExecutor(workers)
    if name != "local":
        raise OptionError(f"--engine is {name!r}; expected local or ray")
    return InProcessExecutor() if workers == 1 else ProcessExecutor(workers)


def _say_summary(summary: Summary, output_dir: Path, reporter: Reporter) -> None:
    reporter.note(f"{summary.kept:,} of {summary.entries:,} conversations are kept.")
    for title, counts in (
        ("Rejected", summary.rejected),
        ("Repaired", summary.repairs),
        ("Converted", summary.conversions),
    ):
        if counts:
            listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
            reporter.note(f"{title}: {listed}.")
    if Reason.MISSING_IMAGE.value in summary.rejected:
        folders = missing_by_folder(output_dir / "quarantine.jsonl").most_common(8)
        listed = ", ".join(f"{folder} {count:,}" for folder, count in folders)
        reporter.note(f"Missing images by folder: {listed} (is the tar there, under that name?).")
    if summary.rejected:
        reporter.note(f"Each rejected entry is a line in {output_dir / 'quarantine.jsonl'}.")
    reporter.note(f"Filtering done and saved to {summary.filtered_json}.")
    if summary.kept:
        reporter.note(
            f"Dataset successfully converted to the webdataset format: {summary.images:,} images, "
            f"{summary.bytes / 1e9:,.2f} GB in {summary.num_shards} shards in {output_dir}."
        )
        reporter.note(f"Next: python -m data_prep prepare {output_dir} --split 8,1,1")
    else:
        reporter.note("error: no entry was kept; see the quarantine for what is missing")


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
