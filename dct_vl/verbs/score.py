"""`dct-vl score` and `tasks`: predictions of any model against a benchmark's true answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dct_vl.errors import ConfigError
from dct_vl.verbs import one_line_errors

if TYPE_CHECKING:
    from dct_vl.evaluation.score import Report
    from dct_vl.evaluation.tasks.task import Task, TaskItem

tasks_app = typer.Typer(no_args_is_help=True, help="Benchmarks that can be scored.")
#: keys or lines that are named on the screen; the results file has them all
_SHOWN = 5
Data = Annotated[Path, typer.Option(help="The benchmark's folder or file; `tasks list` says what.")]
Split = Annotated[str | None, typer.Option(help="Split; the benchmark's usual one by default.")]


def score(
    task: Annotated[str, typer.Argument(help="Name of a task; `tasks list` has them.")],
    data: Data,
    predictions: Annotated[
        Path, typer.Option(help='JSON lines {"key", "answer"}, perhaps with num_visual_tokens.')
    ],
    json: Annotated[
        Path | None, typer.Option(help="Folder for lmms-eval's results and samples files.")
    ] = None,
    split: Split = None,
    only_answered: Annotated[
        bool,
        typer.Option(help="Leave out items without a prediction; by default they are wrong."),
    ] = False,
    model_name: Annotated[str, typer.Option(help="Name for the results file.")] = "",
) -> None:
    """Score predictions against a task's true answers; no model is needed."""
    from dct_vl.evaluation.score import read_predictions, score_predictions, write_results

    with _plain_errors():
        found, items = _load(task, data, split)
        read = read_predictions(predictions)
        report = score_predictions(found, items, read, only_answered=only_answered)
    _show(report, only_answered)
    if json is not None:
        with _plain_errors():
            written = write_results(report, json, model_name=model_name)
        for path in written:
            typer.echo(f"wrote {path}")


@tasks_app.command("list")
def list_tasks() -> None:
    """List the tasks with their metrics and the files that each reads."""
    with _plain_errors():
        from dct_vl.evaluation.tasks.registry import TASKS

    for task in TASKS:
        arrow = "" if task.higher_is_better else ", lower is better"
        typer.echo(f"{task.name:<14} {task.summary} ({task.headline}{arrow})")
        typer.echo(f"{'':<14} reads {task.layout}")


@tasks_app.command("show")
def show_task(
    task: Annotated[str, typer.Argument(help="Name of a task.")],
    data: Data,
    split: Split = None,
    number: Annotated[int, typer.Option(min=1, help="Number of items to show.")] = 2,
) -> None:
    """Read a task's data and show its first items, to see that the folder is right."""
    from dct_vl.evaluation.tasks.files import ReadOptions

    with _plain_errors():
        found, items = _load(task, data, split)
        first = list(islice(found.read(data, ReadOptions(split=split)), number))
    answered = sum(bool(item.references) for item in items)
    typer.echo(f"{found.name}: {len(items)} items, {answered} with a true answer")
    for item in first:
        images = ", ".join(
            f"{len(i)} bytes" if isinstance(i, bytes) else str(i) for i in item.images
        )
        typer.echo(f"\nkey      {item.key}\nimages   {images or 'none'}")
        typer.echo(f"question {item.question}\nanswers  {list(item.references)}")


@tasks_app.command("price-file")
def price_file(
    data: Annotated[Path, typer.Option(help="Chat JSON lines of the products to price.")],
    predictions: Annotated[Path, typer.Option(help='JSON lines {"key", "answer"}.')],
    train: Annotated[Path, typer.Option(help="Chat JSON lines with prices, for their median.")],
    output: Annotated[Path, typer.Option(help="CSV to write.")] = Path("test_out.csv"),
) -> None:
    """Write the price task's submission: sample_id,price for every product."""
    from dct_vl.evaluation.score import read_predictions
    from dct_vl.evaluation.tasks.chats import write_price_file

    with _plain_errors():
        read = read_predictions(predictions)
        answers = {key: prediction.answer for key, prediction in read.by_key.items()}
        products, known = (_load("price", file, None)[1] for file in (data, train))
        filled = write_price_file(products, answers, known, output)
    _warn("lines are no prediction", read.bad_lines)
    typer.echo(f"wrote {output}: {len(products)} prices, {filled} of them the training median")


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors of the user's data and files, and missing packages, without a traceback."""
    try:
        with one_line_errors(OSError):
            yield
    except ModuleNotFoundError as error:
        hint = "pip install -e '.[eval]' brings what scoring needs"
        raise ConfigError(f"{error}; {hint}") from error


def _load(name: str, data: Path, split: str | None) -> tuple[Task, list[TaskItem]]:
    """The task and all its items, without their images."""
    from dct_vl.evaluation.tasks.files import ReadOptions
    from dct_vl.evaluation.tasks.registry import find_task
    from dct_vl.evaluation.tasks.task import items_of

    task = find_task(name)
    return task, items_of(task, data, ReadOptions(split=split, images=False))


def _show(report: Report, only_answered: bool) -> None:
    from dct_vl.evaluation.score import standard_error

    for name, value in report.scores.total.items():
        error = standard_error(report, name)
        spread = f" ± {error:.4f}" if isinstance(error, float) else ""
        typer.echo(f"{report.task.name}  {name}  {value:.4f}{spread}")
    seen = report.mean_visual_tokens
    bounds = ", ".join(f"{low}-{high}" for low, high in report.pixel_bounds)
    typer.echo(
        f"{len(report.items)} items, mean visual tokens "
        f"{'not given' if seen is None else f'{seen:.1f}'}, pixel bounds {bounds or 'not given'}"
    )
    left = "left out" if only_answered else "counted as wrong"
    _warn(f"items have no prediction ({left})", report.missing)
    _warn("predictions name no item", report.unknown)
    _warn("lines are no prediction", report.bad_lines)
    if report.num_without_reference:
        _warn_text(f"{report.num_without_reference} items have no true answer and were not scored")
    if len(report.pixel_bounds) > 1:
        _warn_text("answers were made with different pixel bounds: this is not one score")


def _warn(what: str, names: list[str]) -> None:
    if names:
        rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        _warn_text(f"{len(names)} {what}: {'; '.join(names[:_SHOWN])}{rest}")


def _warn_text(text: str) -> None:
    typer.secho(f"warning: {text}", err=True, fg=typer.colors.YELLOW)
