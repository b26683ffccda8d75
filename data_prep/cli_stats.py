"""``python -m data_prep stats`` and ``preview``: what the shards hold."""

import errno
import os
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from data_prep.durable import write_durably
from data_prep.manifest import check_closed, load_manifest
from data_prep.options import OptionError
from data_prep.remote import is_url
from data_prep.shards import shard_paths
from data_prep.stats import Tally, as_json, count_tokens, find_tokenizers, tally_folder
from data_prep.workspace import Workspace, WorkspaceError


def _local(text: str) -> Path:
    if is_url(text):
        raise WorkspaceError(
            f"{text}: this command reads shards on a disk; copy or mount the folder, or look "
            "at the output of `convert` before it goes there"
        )
    return Path(text)


Root = Annotated[
    Path, typer.Argument(help="Folder with the shards.", parser=_local, metavar="ROOT")
]
Workers = Annotated[int, typer.Option(min=1, help="Number of processes.")]
NUM_CORES = len(os.sched_getaffinity(0))


def stats(
    root: Root,
    html: Annotated[bool, typer.Option("--html", help="Also write ROOT/stats.html.")] = False,
    min_pixels: Annotated[
        int, typer.Option(min=1, help="Minimum pixels of a resized image.")
    ] = 784,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Maximum pixels of a resized image.")
    ] = 43_904,
    tokenizer: Annotated[
        list[str] | None,
        typer.Option(help="Preset or YAML file; may be repeated (default: all presets)."),
    ] = None,
    num_samples: Annotated[int, typer.Option(min=0, help="Number of samples on the page.")] = 12,
    workers: Workers = NUM_CORES,
) -> None:
    """Count sizes, sources, turns, lengths and visual tokens: a table and ROOT/stats.json."""
    # the plots take half a second to import, which the other commands need not wait for
    from data_prep.shard_pages import pick_samples, stats_page

    console = Console()
    if min_pixels > max_pixels:
        raise OptionError(f"--min-pixels {min_pixels} is over --max-pixels {max_pixels}")
    bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    tokenizers = find_tokenizers(tokenizer or [])
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=len(shard_paths(root)))
        tally = tally_folder(root, workers=workers, on_shard=lambda: bar.advance(task))
        counting = count_tokens(tally.sizes, tokenizers, **bounds)
        described = "counting visual tokens"
        tokens = list(bar.track(counting, total=len(tokenizers), description=described))
    figures = as_json(tally, tokens, **bounds)
    console.print(_table(figures))
    for note in _token_notes(figures):
        typer.echo(note)
    say_faults(tally)
    _warn_of_unfinished(root)
    options = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS
    path = _write(root / "stats.json", orjson.dumps(figures, option=options))
    typer.echo(f"all figures: {path}")
    if html:
        page = stats_page(
            f"{root.resolve().name}: what the shards hold",
            tally,
            figures,
            samples=pick_samples(root, num_samples, seed=0),
            manifest=_manifest(root),
        )
        typer.echo(f"page: {_write(root / 'stats.html', page.encode())}")


def preview(
    root: Root,
    count: Annotated[int, typer.Option(min=1, help="Number of samples.")] = 24,
    seed: Annotated[int, typer.Option(help="Sampling seed.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Page to write (default: ROOT/preview.html).")
    ] = None,
) -> None:
    """Write a page of samples as they are stored: images and conversations."""
    from data_prep.shard_pages import pick_samples, preview_page

    faults = Tally()
    samples = pick_samples(root, count, seed=seed, faults=faults)
    _warn_of_unfinished(root)
    page = preview_page(f"{root.resolve().name}: samples", samples).encode()
    if output is None:
        output = _write(root / "preview.html", page)
    else:
        write_durably(output, page)
    typer.echo(f"{len(samples)} samples: {output}")
    say_faults(faults)


def say_faults(tally: Tally) -> None:
    """What the shards hold and training will not use."""
    for line in tally.faults():
        typer.echo(f"warning: {line}", err=True)


def _write(path: Path, data: bytes) -> Path:
    """Write a file beside the shards, or in the working folder where theirs is read-only."""
    try:
        write_durably(path, data)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        elsewhere = Path.cwd() / f"{path.parent.resolve().name}-{path.name}"
        if elsewhere.parent.resolve() == path.parent.resolve():
            raise
        write_durably(elsewhere, data)
        return elsewhere
    return path


def _warn_of_unfinished(root: Path) -> None:
    """Half a conversion may be looked at, but not taken for all of it."""
    try:
        check_closed(Workspace(root))
    except WorkspaceError as error:
        typer.echo(f"warning: these are the shards that are there: {error}", err=True)


def _manifest(root: Path) -> dict[str, Any] | None:
    try:
        return load_manifest(Workspace(root))
    except (FileNotFoundError, WorkspaceError):
        return None  # of which `_warn_of_unfinished` spoke


def _table(figures: dict[str, Any]) -> Table:
    sources = ", ".join(f"{name} {number:,}" for name, number in figures["sources"].items())
    counts = [f"{figures[name]:,} {name}" for name in ("samples", "images", "videos")]
    title = f"{', '.join(counts[: 3 if figures['videos'] else 2])}\n{sources}"
    table = Table("", "min", "5 %", "median", "95 %", "max", "mean", title=title)
    rows = [(name.replace("_", " "), figures[name]) for name in _SUMMARIES]
    rows += [(f"tokens, {name}", tokens) for name, tokens in figures["visual_tokens"].items()]
    for label, summary in rows:
        if summary["count"]:
            names = ("min", "p5", "median", "p95", "max", "mean")
            table.add_row(label, *(f"{summary[name]:,g}" for name in names))
    return table


def _token_notes(figures: dict[str, Any]) -> list[str]:
    unknown = figures["images_of_unknown_size"]
    notes = [
        f"sizes unknown: the JSON of {unknown:,} images has no width and height; neither sizes nor "
        "tokens of them are counted"
    ] * bool(unknown)
    notes += [
        f"tokens, {name}: {tokens['refused']:,} images cannot be cut within these pixel bounds"
        for name, tokens in figures["visual_tokens"].items()
        if tokens["refused"]
    ]
    later = ", ".join(figures["visual_tokens_known_after_decoding"])
    return [*notes, *([f"tokens known after decoding only: {later}"] if later else [])]


_SUMMARIES = (
    *("width", "height", "aspect_ratio", "megapixels", "image_kib", "video_kib"),
    *("question_chars", "answer_chars"),
)
