"""The verb `generate` of `dct-vl`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dct_vl.inference.generate.options import (
    Dtype,
    PipelineParallel,
    PixelBound,
    Stop,
    Temperature,
    TensorParallel,
    TopK,
    TopP,
    TrustRemoteCode,
    Workers,
    answer_settings,
    check_dtype,
    torch_dtype,
)

if TYPE_CHECKING:
    from dct_vl.inference.generate.engine import AnswerSettings
    from dct_vl.inference.generate.requests import Requests
    from dct_vl.inference.generate.teams import Layout


def generate(
    model: Annotated[
        Path,
        typer.Argument(help="A run's folder, a checkpoint in it, or a Hugging Face folder."),
    ],
    output: Annotated[Path, typer.Option(help="JSONL to write or to go on with.")],
    input: Annotated[
        Path | None, typer.Option(help="JSONL of questions; or --task with --data.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="A benchmark; `tasks list` has them.")] = None,
    data: Annotated[Path | None, typer.Option(help="The benchmark's folder or file.")] = None,
    split: Annotated[str | None, typer.Option(help="Part of the benchmark.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of an answer where no line says so.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 16,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Annotated[int, typer.Option(help="Of what is drawn, with each question's key.")] = 0,
    stop: Stop = None,
    min_pixels: PixelBound = None,
    max_pixels: PixelBound = None,
    workers: Workers = None,
    tp: TensorParallel = 1,
    pp: PipelineParallel = 1,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Answer questions about pictures and videos; a second start goes on where one was stopped.

    Several workers, --tp and --pp start processes by themselves, unless torchrun did already.
    Questions that cannot be asked are listed with reasons in a .rejected.jsonl beside the output,
    and asked again once their lines are deleted there.
    """
    if (input is None) == (task is None) or (task is None) != (data is None):
        raise typer.BadParameter("expected either --input, or --task with --data")
    check_dtype(dtype)
    from dct_vl.inference.generate.teams import layout_of, start_processes

    try:
        layout = layout_of(tp, pp, workers)
        if (status := start_processes(layout)) is not None:
            raise typer.Exit(status)
        settings = answer_settings(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=stop,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        )
        requests = _requests(input, task, data, split, limit, max_new_tokens)
        _answer(
            model,
            requests,
            settings,
            layout,
            output,
            batch_size,
            trust_remote_code=trust_remote_code,
            dtype=dtype,
        )
    except (ValueError, OSError) as error:
        # OSError: no room or no right to write; transformers says so of damaged folders too
        raise typer.BadParameter(str(error)) from error


def _requests(
    file: Path | None,
    task: str | None,
    data: Path | None,
    split: str | None,
    limit: int | None,
    max_new_tokens: int | None,
) -> Requests:
    from dct_vl.inference.generate.requests import FileRequests

    if file is not None:
        return FileRequests(file, max_new_tokens=max_new_tokens or 128, limit=limit)
    assert task is not None
    assert data is not None
    from dct_vl.evaluation.tasks.registry import find_task
    from dct_vl.evaluation.tasks.task import TaskRequests

    found = find_task(task)
    return TaskRequests(found, data, split=split, max_new_tokens=max_new_tokens, limit=limit)


def _answer(
    model: Path,
    requests: Requests,
    settings: AnswerSettings,
    layout: Layout,
    output: Path,
    batch_size: int,
    *,
    trust_remote_code: bool,
    dtype: str | None,
) -> None:
    from dct_vl.inference.generate.journal import Journal
    from dct_vl.inference.generate.open_engine import open_engine
    from dct_vl.inference.generate.run import generate as run
    from dct_vl.inference.generate.teams import start_team

    team = start_team(layout)
    engine = open_engine(
        model,
        settings,
        layout,
        trust_remote_code=trust_remote_code,
        dtype=torch_dtype(dtype),
    )
    journal = Journal(output)
    done = run(engine, requests, journal, team, settings, batch_size=batch_size)
    if done is None:
        return
    bounds = f"pixels {engine.min_pixels}-{engine.max_pixels}"
    typer.echo(f"{output}: {done.num_answered} answers in {done.seconds:.0f} s, {bounds}")
    if done.num_rejected:
        typer.echo(f"{done.num_rejected} rejected: {journal.rejected}", err=True)
