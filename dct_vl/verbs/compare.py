"""The verbs `compare`, `study` and `quickstart` of `dct-vl`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, LOG_DIR/EXPERIMENT_NAME.")],
    output: Annotated[Path, typer.Option(help="Folder for compare.html and compare.json.")] = Path(
        "outputs/compare"
    ),
    answers: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE: scores of a run that lie elsewhere; may be repeated."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Run that the others are compared with; else the first.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Score of samples files; else the task's headline.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="TASK=PATH: a benchmark's data, for its images; may be repeated."),
    ] = None,
    examples: Annotated[
        int, typer.Option(min=0, help="Samples to show on which the runs disagree.")
    ] = 12,
    ask: Annotated[
        bool, typer.Option(help="Answer the questions of --split where a run has no scores.")
    ] = False,
    split: Annotated[str, typer.Option(help="Split to ask about.")] = "val",
    limit: Annotated[int | None, typer.Option(min=1, help="Ask about so many samples.")] = None,
) -> None:
    """Write one page about several runs: scores against cost, intervals, where they disagree.

    Scores are found in the runs' folders: answers*.jsonl of `answers`, words.jsonl of `words`, and
    *_samples_TASK.jsonl of `score --json`.
    """
    try:
        from dct_vl.compat.registry import quieten
        from dct_vl.evaluation.compare import read_runs, write_comparison

        quieten()
        found = read_runs(
            runs,
            answers=_files(answers or [], "answers", "NAME=FILE, NAME a run's folder name"),
            metric=metric,
            ask=(lambda run, file: _ask(run, file, split, limit)) if ask else None,
        )
        page = write_comparison(
            found,
            output,
            baseline=baseline,
            num_disagreements=examples,
            data=_files(data or [], "data", "TASK=PATH, TASK of a samples file"),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    for line in warnings_of(output):
        typer.secho(f"warning: {line}", err=True, fg=typer.colors.YELLOW)
    typer.echo(f"Open {page}")


def study(
    runs: Annotated[Path, typer.Argument(help="LOG_DIR whose runs hold a words.jsonl each.")],
    output: Annotated[Path, typer.Option(help="Folder for study.md, study.png, study.json.")],
    baseline: Annotated[
        str, typer.Option(help="Tokenizer that the others are compared with.")
    ] = "pixel28",
    picture: Annotated[
        str, typer.Option(help="HEIGHTxWIDTH in pixels for which FLOPs are counted.")
    ] = "224x224",
) -> None:
    """Compare runs that differ in tokenizer and seed: a table with intervals, and plots."""
    from dct_vl.evaluation.compare.study import collect_study, write_study

    height, _, width = picture.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise typer.BadParameter(f"picture is {picture!r}; expected HEIGHTxWIDTH, like 224x224")
    try:
        table = write_study(
            collect_study(runs, (int(height), int(width))), output, baseline=baseline
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(table.read_text(encoding="utf-8"))


def quickstart(
    folder: Annotated[Path, typer.Argument(help="Output folder of launch/quickstart.sh.")],
    resumed_from: Annotated[int, typer.Option(help="Step that runs/resumed went on from.")],
    seconds: Annotated[float | None, typer.Option(help="Wall time so far.")] = None,
) -> None:
    """Write report.html and summary.json of a quickstart."""
    from dct_vl.compat.registry import quieten
    from dct_vl.evaluation.compare.quickstart import read_quickstart
    from dct_vl.evaluation.compare.quickstart_page import SUMMARY_NAME, write_quickstart

    quieten()
    try:
        data = read_quickstart(folder, resumed_from=resumed_from, seconds_total=seconds)
        page = write_quickstart(data, folder)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo((folder / SUMMARY_NAME).read_text())
    typer.echo(f"Open {page}")


def warnings_of(output: Path) -> list[str]:
    """Warnings of a comparison that was written."""
    import orjson

    from dct_vl.evaluation.compare.report import JSON_NAME

    return list(orjson.loads((output / JSON_NAME).read_bytes())["warnings"])


def _files(given: list[str], option: str, expected: str) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not (name and equals and file):
            raise ValueError(f"--{option} is {text!r}; expected {expected}")
        if name in files:
            raise ValueError(f"--{option} names {name} twice, {files[name]} and {file}: name one")
        files[name] = Path(file)
    return files


def _ask(run: Path, file: Path, split: str, limit: int | None) -> None:
    from dct_vl.inference.answers import AnswerOptions, write_answers
    from dct_vl.inference.loading import load_checkpoint

    done = write_answers(load_checkpoint(run), AnswerOptions(split=split, limit=limit), file)
    assert done is not None, "this process is alone"
    typer.echo(f"{file}: {done.share:.4f} exact, {split}", err=True)
    if done.rejected.by_reason:
        typer.echo(str(done.rejected), err=True)
