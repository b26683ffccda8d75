"""``python -m data_prep convert`` and ``cambrian``: one conversion, two ways to name the source."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from data_prep.check import check as dry_run
from data_prep.cli_stats import NUM_CORES, Workers
from data_prep.executor import Executor, InProcessExecutor, ProcessExecutor
from data_prep.manifest import Summary
from data_prep.mirror import open_workspace
from data_prep.model_folder import CONTROL_TOKENS, control_tokens
from data_prep.options import (
    DEFAULT_SHARD_SIZE,
    OptionError,
    Options,
    TextOnly,
    Verify,
    parse_presize,
)
from data_prep.prepared import check_prepared
from data_prep.progress import Reporter
from data_prep.quarantine import Reason, missing_by_folder
from data_prep.remote import WorkspaceError, folder_at
from data_prep.run import Job, run
from data_prep.sources import FORMATS, ReadOptions, SourceError
from data_prep.split import suggested_split
from data_prep.stats import find_tokenizers
from data_prep.workspace import Workspace


def _conversion(
    output_dir: Annotated[str, typer.Option(help="Folder for the shards, or its s3:// URL.")],
    workers: Workers = NUM_CORES,
    engine: Annotated[
        str,
        typer.Option(
            help="local (processes) or ray (the cluster of RAY_ADDRESS, else one started here)."
        ),
    ] = "local",
    verify: Annotated[
        str, typer.Option(help="Check of JPEGs and videos: structure, decode or none.")
    ] = "decode",
    text_only: Annotated[
        str, typer.Option(help="Entries without image and video: drop or keep.")
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
    max_video_bytes: Annotated[
        int, typer.Option(help="Reject entries with larger videos.")
    ] = Options.max_video_bytes,
    tokenizer_path: Annotated[
        Path | None,
        typer.Option(
            help="Model's folder, whose control tokens texts must not hold; --check counts by it."
        ),
    ] = None,
    retry_quarantined: Annotated[
        bool, typer.Option("--retry-quarantined", help="Retry only what was rejected before.")
    ] = False,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Leave out this key of the entries; may be repeated."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Write nothing: count, and show the first three samples."),
    ] = False,
    tokenizer: Annotated[
        str, typer.Option(help="With --check: preset or YAML file that counts visual tokens.")
    ] = "pixel",
    min_pixels: Annotated[
        int, typer.Option(min=1, help="With --check: minimum pixels of a resized image.")
    ] = 784,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="With --check: maximum pixels of a resized image.")
    ] = 43_904,
    *,
    source: dict[str, Any],
) -> None:
    """Convert a source, given as fields of `Job`; the options are those of every such verb."""
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
        max_video_bytes=max_video_bytes,
        control_tokens=control_tokens(tokenizer_path) if tokenizer_path else CONTROL_TOKENS,
    )
    reading = replace(source.pop("reading", ReadOptions()), ignore=tuple(ignore or ()))
    job = Job(
        output_dir=output_dir,
        options=options,
        retry_quarantined=retry_quarantined,
        reading=reading,
        **source,
    )
    if check:
        _check(job, tokenizer, tokenizer_path, min_pixels=min_pixels, max_pixels=max_pixels)
        return
    summary = run(job, _executor(engine, workers), reporter)
    _say_summary(summary, open_workspace(output_dir), reporter)
    if not summary.kept:
        raise typer.Exit(1)


def _check(job: Job, tokenizer: str, model: Path | None, **bounds: int) -> None:
    if bounds["min_pixels"] > bounds["max_pixels"]:
        raise OptionError(
            f"--min-pixels {bounds['min_pixels']} is over --max-pixels {bounds['max_pixels']}"
        )
    tokenizers = [one.within(**bounds) for one in find_tokenizers([tokenizer])]
    for line in dry_run(job, tokenizers=tokenizers, model=model):
        typer.echo(line)


def _converts(choose: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """A verb that converts what ``choose`` makes of its own parameters, with the shared options."""
    own = inspect.signature(choose).parameters
    shared = {
        name: parameter
        for name, parameter in inspect.signature(_conversion).parameters.items()
        if name != "source"
    }

    @wraps(choose)
    def verb(**given: Any) -> None:
        chosen = choose(**{name: given.pop(name) for name in own})
        _conversion(**given, source=chosen)

    parameters = [one.replace(kind=one.KEYWORD_ONLY) for one in (*own.values(), *shared.values())]
    verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    verb.__annotations__ = {one.name: one.annotation for one in parameters}
    return verb


@_converts
def cambrian(
    data_dir: Annotated[
        Path, typer.Option(help="Folder with the JSON and the image tars or folders.")
    ],
    json: Annotated[
        Path | None, typer.Option(help="JSON or JSONL of the entries, if there are several.")
    ] = None,
) -> dict[str, Any]:
    """Convert a dataset in the layout of Cambrian737k to shards; a rerun resumes."""
    return {"data_dir": data_dir, "json": json}


@_converts
def convert(
    source: Annotated[
        Path, typer.Argument(help="File of entries, or a folder with one; media lie beside it.")
    ],
    format: Annotated[
        str | None, typer.Option(help=f"{', '.join(FORMATS)} (default: as the content has it).")
    ] = None,
    media_dir: Annotated[
        Path | None, typer.Option(help="Folder of the media (default: that of the entries).")
    ] = None,
    image_column: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Of tables: images; may be repeated."),
    ] = None,
    video_column: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Of tables: videos.")
    ] = None,
    conversations_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Of tables: conversations or messages.")
    ] = None,
    question_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Of tables: questions.")
    ] = None,
    answer_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Of tables: their answers.")
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Of tables: captions.")
    ] = None,
    caption_prompt: Annotated[
        str, typer.Option(help="What a caption is the answer to.")
    ] = ReadOptions.caption_prompt,
) -> dict[str, Any]:
    """Convert a dataset of any known format to shards; a rerun resumes."""
    if not source.exists():
        raise SourceError(f"{source} is neither a file nor a folder; expected one of entries")
    reading = ReadOptions(
        image_column=tuple(image_column or ()),
        video_column=tuple(video_column or ()),
        conversations_column=conversations_column,
        question_column=question_column,
        answer_column=answer_column,
        text_column=text_column,
        caption_prompt=caption_prompt,
    )
    return {
        "data_dir": media_dir or (source.parent if source.is_file() else source),
        "json": source.absolute() if media_dir or source.is_file() else None,
        "format": format,
        "reading": reading,
    }


def _executor(name: str, workers: int) -> Executor:
    if name == "ray":
        # an optional extra, and a second to import
        from data_prep.ray_executor import RayExecutor

        return RayExecutor(workers)
    if name != "local":
        raise OptionError(f"--engine is {name!r}; expected local or ray")
    return InProcessExecutor() if workers == 1 else ProcessExecutor(workers)


def _say_summary(summary: Summary, output: Workspace, reporter: Reporter) -> None:
    reporter.note(f"{summary.kept:,} of {summary.entries:,} conversations are kept.")
    for title, counts in (
        ("Rejected", summary.rejected),
        ("Repaired", summary.repairs),
        ("Converted", summary.conversions),
    ):
        if counts:
            listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
            reporter.note(f"{title}: {listed}.")
    if {Reason.MISSING_IMAGE.value, Reason.MISSING_VIDEO.value} & summary.rejected.keys():
        folders = missing_by_folder(output.quarantine).most_common(8)
        listed = ", ".join(f"{folder} {count:,}" for folder, count in folders)
        reporter.note(f"Missing files by folder: {listed} (is the tar there, under that name?).")
    if Reason.TEXT_ONLY.value in summary.rejected:
        reporter.note("Entries without image and video are kept with --text-only keep.")
    if summary.rejected:
        reporter.note(f"Each rejected entry is a line in {output.shown}/quarantine.jsonl.")
    reporter.note(f"Filtering done and saved to {output.shown}/{summary.filtered_json.name}.")
    if summary.kept:
        reporter.note(
            f"Dataset successfully converted to the webdataset format: {summary.images:,} images, "
            + (f"{summary.videos:,} videos, " if summary.videos else "")
            + f"{summary.bytes / 1e9:,.2f} GB in {summary.num_shards} shards in {output.shown}."
        )
        if not _is_prepared(output):
            split = suggested_split(summary.num_shards)
            reporter.note(f"Next: python -m data_prep prepare {output.shown} --split {split}")
    else:
        reporter.note("error: no entry was kept; see the quarantine for what is missing")


def _is_prepared(output: Workspace) -> bool:
    try:
        check_prepared(folder_at(output.shown))
    except WorkspaceError:
        return False
    return True
