"""`python -m dct_tokenizer`: list, show, cost, check and stats."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from dct_tokenizer.base import VisualTokenizer
from dct_tokenizer.conformance import CLAUSES, run_suite
from dct_tokenizer.cost import MODELS, Cost, model_shape, plan_cost
from dct_tokenizer.errors import TokenizerConfigError, nearest_first
from dct_tokenizer.families.block import BlockTokenizer
from dct_tokenizer.gather import gather_statistics, images_in
from dct_tokenizer.plan import PlanError
from dct_tokenizer.registry import build_tokenizer, list_presets, preset_config, preset_summary
from dct_tokenizer.upright import ImageError
from dct_tokenizer.whitening import save_statistics


class OneLineErrors(TyperGroup):
    """Prints a wrong name, setting, size or image as one line and exits with status 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (TokenizerConfigError, PlanError, ImageError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=OneLineErrors,
    help="List, show, cost and check visual tokenizers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

MinPixels = Annotated[int | None, typer.Option(help="Minimum pixels of a resized image.")]
MaxPixels = Annotated[int | None, typer.Option(help="Maximum pixels of a resized image.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def resolve(
    name: str, min_pixels: int | None = None, max_pixels: int | None = None
) -> VisualTokenizer:
    """A tokenizer from a preset's name or the path of a YAML file, with bounds where given."""
    bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    return build_tokenizer(name, **{k: v for k, v in bounds.items() if v is not None})


@app.command("list")
def list_command(as_json: Json = False) -> None:
    """List the presets, with tokens and cost of an image of 896 x 896 pixels."""
    stock = _cost_of(build_tokenizer("pixel"), (896, 896), "2b")
    rows: list[dict[str, Any]] = []
    for name in list_presets():
        tokenizer = build_tokenizer(name)
        cost = _cost_of(tokenizer, (896, 896), "2b")
        options = {k: v for k, v in preset_config(name).items() if k not in ("name", "family")}
        rows.append(
            {
                "name": name,
                "family": tokenizer.family,
                "summary": preset_summary(name),
                "options": options,
                "tokens": cost.num_llm_tokens,
                "flops_ratio": cost.total_flops / stock.total_flops,
                "exact_start": tokenizer.exact_start,
            }
        )
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table(box=SIMPLE_HEAD)
    table.add_column("preset", no_wrap=True)
    for heading in ("tokens", "FLOPs", "start"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("what it is")
    for row in rows:
        table.add_row(
            row["name"],
            str(row["tokens"]),
            f"{row['flops_ratio']:.2f}x",
            "exact" if row["exact_start"] else "near",
            escape(row["summary"]),
        )
    console.print(table)


@app.command()
def show(
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Image file.")],
    tokenizer: Annotated[
        list[str] | None,
        typer.Option("--tokenizer", "-t", help="Preset or YAML file; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="PNG to write; an HTML page is written beside it."),
    ] = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Show an image as the model sees it, with the error and the spectrum kept."""
    from dct_tokenizer.show import look, write_html, write_png
    from dct_tokenizer.show.views import load_image

    names = tokenizer or ["dct28_420", "dct28_lp", "pixel_downscale"]
    pixels = load_image(image)
    views = [look(resolve(name, min_pixels, max_pixels), pixels) for name in names]
    png = output or Path(f"{image.stem}_tokens.png")
    png.parent.mkdir(parents=True, exist_ok=True)
    write_png(views, png)
    page = png.with_suffix(".html")
    write_html(views, page, f"{image.name}: {pixels.shape[1]} x {pixels.shape[0]} pixels")
    for view in views:
        typer.echo(
            f"{view.tokenizer.name}: {view.plan.num_llm_tokens} tokens, PSNR {view.psnr:.2f} dB, "
            f"SSIM {view.ssim:.4f}"
        )
    typer.echo(f"wrote {png} and {page}")


@app.command()
def cost(
    tokenizers: Annotated[
        list[str] | None, typer.Argument(help="Presets or YAML files (default: all presets).")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", help="WIDTHxHEIGHT or WIDTHxHEIGHTxFRAMES; may be repeated."),
    ] = None,
    model: Annotated[str, typer.Option(help=f"Model size: {', '.join(MODELS)}.")] = "2b",
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    as_json: Json = False,
) -> None:
    """Print the tokens, FLOPs, KV cache and wire bytes of an image or clip."""
    rows: list[dict[str, Any]] = []
    for text in size or ["640x480", "896x896", "1920x1080"]:
        shape = _parse_size(text)
        stock = _cost_of(resolve("pixel", min_pixels, max_pixels), shape, model)
        for name in tokenizers or list_presets():
            built = resolve(name, min_pixels, max_pixels)
            try:
                bill = _cost_of(built, shape, model)
            except (PlanError, TokenizerConfigError) as error:
                rows.append({"size": text, "tokenizer": built.name, "error": str(error)})
                continue
            rows.append(
                {
                    "size": text,
                    "tokenizer": built.name,
                    **asdict(bill),
                    "total_flops": bill.total_flops,
                    "flops_ratio": bill.total_flops / stock.total_flops,
                    "upper_bound": not built.counts_from_header,
                }
            )
    if as_json:
        typer.echo(json.dumps(rows))
        return
    console.print(_cost_table(rows, model))


def _cost_table(rows: list[dict[str, Any]], model: str) -> Table:
    title = f"prefill of one image or clip, Qwen2-VL-{model.upper()}, TFLOP"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("size", no_wrap=True)
    table.add_column("tokenizer", no_wrap=True)
    for heading in ("tokens", "cells", "ViT", "LLM", "/ pixel", "KV MB", "wire kB"):
        table.add_column(heading, justify="right", no_wrap=True)
    previous, errors = None, []
    for row in rows:
        if previous not in (None, row["size"]):
            table.add_section()
        previous = row["size"]
        if "error" in row:
            table.add_row(row["size"], row["tokenizer"], "-")
            errors.append(row["error"])
            continue
        bound = "<= " if row["upper_bound"] else ""
        table.add_row(
            row["size"],
            row["tokenizer"],
            f"{bound}{row['num_llm_tokens']}",
            str(row["num_cells"]),
            f"{row['vit_flops'] / 1e12:.2f}",
            f"{row['llm_flops'] / 1e12:.2f}",
            f"{row['flops_ratio']:.3f}",
            f"{row['kv_bytes'] / 1e6:.1f}",
            f"{row['wire_bytes'] / 1e3:.0f}",
        )
    table.caption = escape("\n".join(errors)) or None
    return table


def _parse_size(text: str) -> tuple[int, ...]:
    """(height, width[, frames]) of WIDTHxHEIGHT[xFRAMES]."""
    parts = text.split("x")
    if len(parts) not in (2, 3) or not all(part.isdigit() for part in parts):
        raise TokenizerConfigError(f"--size {text}: expected WIDTHxHEIGHT or WIDTHxHEIGHTxFRAMES")
    width, height, *frames = map(int, parts)
    return (height, width, *frames)


def _cost_of(tokenizer: VisualTokenizer, shape: tuple[int, ...], model: str) -> Cost:
    return plan_cost(tokenizer, tokenizer.plan(*shape), model_shape(model))


@app.command()
def check(
    tokenizers: Annotated[
        list[str] | None, typer.Argument(help="Presets or YAML files to check.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Check every preset.")] = False,
    clause: Annotated[
        list[str] | None, typer.Option("--clause", help="Only this clause; may be repeated.")
    ] = None,
) -> None:
    """Run the conformance suite; the exit status is 1 if a clause fails."""
    names = list_presets() if every else tokenizers
    if not names:
        raise TokenizerConfigError("name presets to check, or pass --all")
    clauses = clause or list(CLAUSES)
    for name in clauses:
        if name not in CLAUSES:
            raise TokenizerConfigError(
                f"unknown clause {name!r}; known: {nearest_first(name, CLAUSES)}"
            )
    built = [resolve(name) for name in names]
    failed = 0
    for tokenizer in built:
        for verdict in run_suite(tokenizer, clauses):
            failed += not verdict.passed
            word = "[green]PASS[/]" if verdict.passed else "[bold red]FAIL[/]"
            line = f"{word} {verdict.tokenizer:<16} {verdict.clause:<12} {escape(verdict.detail)}"
            console.print(line, soft_wrap=True, highlight=False)
    total = len(built) * len(clauses)
    typer.echo(f"{total - failed} of {total} clauses hold over {len(built)} tokenizers")
    if failed:
        raise typer.Exit(1)


@app.command()
def stats(
    shards: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of shards.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")],
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", "-t", help="Preset or YAML file, block family only.")
    ] = "dct28_420",
    max_images: Annotated[
        int, typer.Option("--max-pictures", help="Number of images to read.", min=1)
    ] = 2000,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Measure the whitening statistics of a preset on the images of shards."""
    built = resolve(tokenizer, min_pixels, max_pixels)
    if not isinstance(built, BlockTokenizer):
        raise TokenizerConfigError(
            f"{built.name} is of family {built.family!r}; only family 'block' is whitened by a file"
        )
    gathered = gather_statistics(built, built.bands, images_in(shards), max_images)
    source = (
        f"{gathered.num_images} images of {shards.resolve().name}, {gathered.num_cells} cells, "
        f"{built.min_pixels}..{built.max_pixels} pixels"
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    save_statistics(output, built.bands, gathered.statistics, source)
    typer.echo(f"{source}; {gathered.num_skipped} skipped")
    typer.echo(f"wrote {output}; use it with tokenizer.statistics={output}")
