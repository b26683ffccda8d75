"""The command line of `dct-vl`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dct_vl.inference.generate.options import PipelineParallel, TensorParallel, Workers
from dct_vl.verbs.chat import chat
from dct_vl.verbs.compare import compare, quickstart, study
from dct_vl.verbs.generate import generate
from dct_vl.verbs.score import score, tasks_app

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__
)


app.command()(compare)
app.command()(study)
app.command()(quickstart)
app.command()(chat)
app.command()(generate)
app.command()(score)
app.add_typer(tasks_app, name="tasks")


@app.callback()
def _root() -> None:
    """Load a checkpoint, answer questions, score, report."""


@app.command()
def answers(
    checkpoint: Annotated[Path, typer.Argument(help="A run's folder, or one checkpoint in it.")],
    output: Annotated[Path, typer.Option(help="JSONL to write, one line a question.")],
    data: Annotated[
        Path | None, typer.Option(help="Prepared shards; the run's own by default.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to ask about.")] = "val",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many samples.")] = None,
    blank: Annotated[bool, typer.Option(help="Replace images and videos by grey ones.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 32,
    workers: Workers = None,
    tp: TensorParallel = 1,
    pp: PipelineParallel = 1,
) -> None:
    """Answer every question of a split greedily and compare with the true answers.

    A second start goes on where one was stopped. Several workers, --tp and --pp start processes by
    themselves, unless torchrun did already.
    """
    from dct_vl.inference.answers import AnswerOptions, write_answers
    from dct_vl.inference.generate.teams import layout_of, start_processes, start_team
    from dct_vl.inference.loading import load_checkpoint, with_data_path

    options = AnswerOptions(split=split, limit=limit, blank=blank, batch_size=batch_size)
    try:
        layout = layout_of(tp, pp, workers)
        if (status := start_processes(layout)) is not None:
            raise typer.Exit(status)
        team = start_team(layout)
        model = load_checkpoint(checkpoint)
        if data is not None:
            model = with_data_path(model, str(data))
        done = write_answers(model, options, output, team)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if done is None:
        return
    typer.echo(
        f"{output}: {done.share:.4f} exact, step {model.step}, {'blank ' if blank else ''}{split}"
    )
    if done.rejected.by_reason:
        typer.echo(str(done.rejected), err=True)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run's folder, or one checkpoint in it.")],
    output: Annotated[Path, typer.Argument(help="New folder to write.")],
    dtype: Annotated[
        str | None, typer.Option(help="bf16 or fp32; the checkpoint's own by default.")
    ] = None,
    check: Annotated[
        int, typer.Option(min=0, help="Reload and compare so many validation samples.")
    ] = 0,
    outside: Annotated[
        int,
        typer.Option(
            min=0,
            help="Ask the folder about so many validation samples in a process that cannot import "
            "this project; OUTPUT.answers.jsonl holds what it said.",
        ),
    ] = 0,
    lora: Annotated[
        str, typer.Option(help="merge, or adapter for a PEFT folder of the adapters alone.")
    ] = "merge",
) -> None:
    """Write a Hugging Face folder that transformers loads without this project."""
    from dct_vl.export.checkpoint import DTYPES, export_adapters, export_checkpoint

    if dtype is not None and dtype not in DTYPES:
        raise typer.BadParameter(f"dtype is {dtype!r}, expected bf16 or fp32")
    if lora not in ("merge", "adapter"):
        raise typer.BadParameter(f"lora is {lora!r}, expected merge or adapter")
    try:
        chosen = None if dtype is None else DTYPES[dtype]
        if lora == "adapter":
            num_bytes = export_adapters(checkpoint, output, dtype=chosen)
            typer.echo(f"{output}: adapters, {num_bytes / 1e6:,.1f} MB")
            return
        exported = export_checkpoint(checkpoint, output, dtype=chosen, check=check, outside=outside)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    kind = "plain" if exported.is_plain else "with its tokenizer's code"
    typer.echo(f"{output}: {kind}, {exported.num_bytes / 1e6:,.1f} MB in {exported.dtype}")
    if exported.max_abs_logit_diff is not None:
        typer.echo(f"largest difference of a logit: {exported.max_abs_logit_diff:.2e}")
    if exported.outside is not None:
        asked = exported.outside
        typer.echo(
            f"without this project: {asked.exact_match:.4f} exact, {asked.num_questions} answers, "
            f"largest difference of a logit {asked.max_abs_logit_diff:.2e}"
        )


@app.command(name="import")
def import_(
    folder: Annotated[Path, typer.Argument(help="Hugging Face folder of the model.")],
    output: Annotated[Path, typer.Argument(help="New folder: a run with one checkpoint, step 0.")],
    tokenizer: Annotated[
        str, typer.Option(help="Preset whose front end starts from the folder's patch embedding.")
    ] = "pixel",
) -> None:
    """Write a NeMo checkpoint that every command takes like a run's; nothing is trained."""
    from dct_vl.export.import_hf import import_folder

    try:
        checkpoint = import_folder(folder, output, tokenizer=tokenizer)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"{checkpoint}: {tokenizer}")


@app.command()
def words(
    checkpoints: Annotated[list[Path], typer.Argument(help="Folders of runs, or checkpoints.")],
    output: Annotated[
        Path | None, typer.Option(help="JSONL to write; words.jsonl in each run's folder else.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Prepared shards; the run's own by default.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to read.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many samples.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples at once.")] = 64,
) -> None:
    """Share of answer words predicted right, given the true text before them (teacher forcing)."""
    from dct_vl.evaluation.words import write_words
    from dct_vl.inference.loading import find_checkpoint, load_checkpoint, with_data_path
    from dct_vl.runs.result_files import WORDS_NAME

    if output is not None and len(checkpoints) > 1:
        raise typer.BadParameter("--output names one file; leave it out for several runs")
    for checkpoint in checkpoints:
        try:
            target = output or find_checkpoint(checkpoint)[0] / WORDS_NAME
            model = load_checkpoint(checkpoint)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        if data is not None:
            model = with_data_path(model, str(data))
        try:
            read = write_words(model, target, split=split, limit=limit, batch_size=batch_size)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        typer.echo(f"{target}: {read.share:.4f} of the words right, step {model.step}, {split}")
        if read.rejected.by_reason:
            typer.echo(str(read.rejected), err=True)


@app.command()
def speed(
    checkpoints: Annotated[list[Path], typer.Argument(help="Folders of runs, or checkpoints.")],
    split: Annotated[str, typer.Option(help="Split whose first samples are the batch.")] = "test",
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of the batch.")] = 256,
) -> None:
    """Samples a second of a forward and backward pass, alone and without a loader: speed.json."""
    from dct_vl.evaluation.step_speed import write_speed
    from dct_vl.inference.loading import find_checkpoint, load_checkpoint
    from dct_vl.runs.result_files import SPEED_NAME

    for checkpoint in checkpoints:
        try:
            target = find_checkpoint(checkpoint)[0] / SPEED_NAME
            found = write_speed(
                load_checkpoint(checkpoint), target, split=split, batch_size=batch_size
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        typer.echo(f"{target}: {found:,.0f} samples/s")
