"""``python -m data_prep cambrian``."""

import os
from pathlib import Path
from typing import Annotated, cast

import typer

from data_prep.cli_errors import plain_errors
from data_prep.engine import Engine, InProcessEngine, ProcessEngine
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
from data_prep.quarantine import missing_by_folder
from data_prep.reasons import Reason
from data_prep.run import Job, run


def cambrian(
    data_dir: Annotated[Path, typer.Option(help="Folder with the JSON and the tars or folders.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for the shards.")],
    json: Annotated[
        Path | None, typer.Option(help="JSON or JSONL of the entries, where there are several.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = len(os.sched_getaffinity(0)),
    engine: Annotated[
        str,
        typer.Option(
            help="local processes, or ray: the cluster of RAY_ADDRESS, else one on this machine."
        ),
    ] = "local",
    verify: Annotated[
        str, typer.Option(help="How JPEGs are checked: structure, decode or none.")
    ] = "decode",
    text_only: Annotated[str, typer.Option(help="Entries without image: drop or keep.")] = "drop",
    reencode: Annotated[
        bool, typer.Option("--reencode", help="Encode every image again, as Pillow does.")
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
        typer.Option(help=f"Samples a shard [{DEFAULT_SHARD_SIZE}, less for small sets]."),
    ] = None,
    shard_bytes: Annotated[
        int | None, typer.Option(help="End a shard before its source images exceed this.")
    ] = None,
    shuffle_seed: Annotated[
        int | None, typer.Option(help="Shuffle the entries; without it their order is kept.")
    ] = None,
    max_image_pixels: Annotated[
        int, typer.Option(help="Larger images are rejected.")
    ] = Options.max_image_pixels,
    retry_quarantined: Annotated[
        bool, typer.Option("--retry-quarantined", help="Try only what was rejected before.")
    ] = False,
) -> None:
    """Turn a dataset in the layout of Cambrian737k into shards."""
    reporter = Reporter()
    with plain_errors():
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
        summary = run(job, _engine(engine, workers), reporter)
    _say_summary(summary, output_dir, reporter)
    if not summary.kept:
        raise typer.Exit(1)


def _engine(name: str, workers: int) -> Engine:
    if name == "ray":
        # an optional extra, and a second to import
        from data_prep.ray_engine import RayEngine

        return RayEngine(workers)
    if name != "local":
        raise OptionError(f"--engine is {name!r}; expected local or ray")
    return InProcessEngine() if workers == 1 else ProcessEngine(workers)


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
