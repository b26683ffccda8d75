"""Measure runs (`dct-vl words`, `speed`) and report on them (`compare`, `study`, `quickstart`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dct_vl.errors import ConfigError
from dct_vl.verbs import one_line_errors
from dct_vl.verbs.generate import Limit, Shards

Checkpoints = Annotated[list[Path], typer.Argument(help="Folders of runs, or checkpoints.")]


def words(
    checkpoints: Checkpoints,
    output: Annotated[
        Path | None, typer.Option(help="JSONL to write; by default words.jsonl in each run.")
    ] = None,
    data: Shards = None,
    split: Annotated[str, typer.Option(help="Split to read.")] = "test",
    limit: Limit = None,
    batch_size: Annotated[int, typer.Option(help="Samples of a batch.")] = 64,
) -> None:
    """Measure the share of answer words predicted right, given the true text before them."""
    from dct_vl.evaluation.forward_pass import write_words
    from dct_vl.inference.loading import find_checkpoint, load_checkpoint, with_data_path
    from dct_vl.runs.result_files import WORDS_NAME

    if output is not None and len(checkpoints) > 1:
        raise ConfigError("--output names one file; leave it out for several runs")
    for checkpoint in checkpoints:
        with one_line_errors():
            target = output or find_checkpoint(checkpoint)[0] / WORDS_NAME
            model = load_checkpoint(checkpoint)
            if data is not None:
                model = with_data_path(model, str(data))
            read = write_words(model, target, split=split, limit=limit, batch_size=batch_size)
        typer.echo(f"{target}: {read.share:.4f} of the words right, step {model.step}, {split}")
        if read.rejected.by_reason:
            typer.echo(str(read.rejected), err=True)


def speed(
    checkpoints: Checkpoints,
    split: Annotated[str, typer.Option(help="Split whose first samples are the batch.")] = "test",
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of the batch.")] = 256,
) -> None:
    """Measure samples per second of a forward and backward pass without a loader: speed.json."""
    from dct_vl.evaluation.forward_pass import write_speed
    from dct_vl.inference.loading import find_checkpoint, load_checkpoint
    from dct_vl.runs.result_files import SPEED_NAME

    for checkpoint in checkpoints:
        with one_line_errors():
            target = find_checkpoint(checkpoint)[0] / SPEED_NAME
            model = load_checkpoint(checkpoint)
            found = write_speed(model, target, split=split, batch_size=batch_size)
        typer.echo(f"{target}: {found:,.0f} samples/s")


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, LOG_DIR/EXPERIMENT_NAME.")],
    output: Annotated[Path, typer.Option(help="Folder for compare.html and compare.json.")] = Path(
        "outputs/compare"
    ),
    answers: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE: a run's scores from another file; may be repeated."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Run to compare with; by default the first."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Metric of samples files; by default the task's headline.")
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
    limit: Limit = None,
) -> None:
    """Write one page about several runs: scores against cost, intervals, where they disagree.

    Scores are found in the runs' folders: answers*.jsonl of `answers`, words.jsonl of `words`, and
    *_samples_TASK.jsonl of `score --json`.
    """
    from dct_vl.compat.registry import quieten
    from dct_vl.evaluation.compare import read_runs, write_comparison

    quieten()
    with one_line_errors():
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
    for line in warnings_of(output):
        typer.secho(f"warning: {line}", err=True, fg=typer.colors.YELLOW)
    typer.echo(f"Open {page}")


def study(
    runs: Annotated[Path, typer.Argument(help="LOG_DIR whose runs hold a words.jsonl each.")],
    output: Annotated[Path, typer.Option(help="Folder for study.md, study.png and study.json.")],
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
        raise ConfigError(f"picture is {picture!r}; expected HEIGHTxWIDTH, like 224x224")
    with one_line_errors():
        table = write_study(
            collect_study(runs, (int(height), int(width))), output, baseline=baseline
        )
    typer.echo(table.read_text(encoding="utf-8"))


def quickstart(
    folder: Annotated[Path, typer.Argument(help="Output folder of launch/quickstart.sh.")],
    resumed_from: Annotated[int, typer.Option(help="Step that runs/resumed was resumed from.")],
    seconds: Annotated[float | None, typer.Option(help="Wall-clock seconds so far.")] = None,
) -> None:
    """Write the quickstart's report.html and summary.json."""
    from dct_vl.compat.registry import quieten
    from dct_vl.evaluation.compare.quickstart import read_quickstart
    from dct_vl.evaluation.compare.quickstart_page import SUMMARY_NAME, write_quickstart

    quieten()
    with one_line_errors():
        data = read_quickstart(folder, resumed_from=resumed_from, seconds_total=seconds)
        page = write_quickstart(data, folder)
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
    from dct_vl.inference.generate.answers import AnswerOptions, write_answers
    from dct_vl.inference.loading import load_checkpoint

    done = write_answers(load_checkpoint(run), AnswerOptions(split=split, limit=limit), file)
    assert done is not None, "this process is alone"
    typer.echo(f"{file}: {done.share:.4f} exact, {split}", err=True)
    if done.rejected.by_reason:
        typer.echo(str(done.rejected), err=True)
