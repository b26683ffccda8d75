"""`dct-vl generate` and `answers`, and the options of every verb that has an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dct_vl.errors import ConfigError
from dct_vl.verbs import one_line_errors

if TYPE_CHECKING:
    import torch

    from dct_vl.inference.generate.requests import Requests
    from dct_vl.inference.sampling import AnswerSettings

Checkpoint = Annotated[Path, typer.Argument(help="A run's folder, or one checkpoint in it.")]
Shards = Annotated[Path | None, typer.Option(help="Prepared shards; the run's own by default.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Largest number of samples.")]
Temperature = Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Sample among the likeliest tokens of this probability.")]
TopK = Annotated[int, typer.Option(help="Sample among the k likeliest tokens; 0 for all.")]
Seed = Annotated[int, typer.Option(help="Sampling seed, combined with each request's key.")]
Stop = Annotated[
    list[str] | None, typer.Option(help="Text before which an answer ends; may be repeated.")
]
MinPixels = Annotated[int | None, typer.Option(help="Smallest image area; the model's by default.")]
MaxPixels = Annotated[int | None, typer.Option(help="Largest image area; the model's by default.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Replicas of the model that share the questions.")
]
TensorParallel = Annotated[int, typer.Option(min=1, help="Tensor-parallel size.")]
PipelineParallel = Annotated[int, typer.Option(min=1, help="Pipeline-parallel size.")]
Dtype = Annotated[
    str | None, typer.Option(help="bf16 or fp32; by default bf16 on a GPU, fp32 on the CPU.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option(help="Run the code that a Hugging Face folder brings.")
]


def generate(
    model: Annotated[
        Path,
        typer.Argument(help="A run's folder, a checkpoint in it, or a Hugging Face folder."),
    ],
    output: Annotated[Path, typer.Option(help="JSONL of answers to write, or to resume.")],
    input: Annotated[
        Path | None, typer.Option(help="JSONL of questions; or --task with --data.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="A benchmark; `tasks list` has them.")] = None,
    data: Annotated[Path | None, typer.Option(help="The benchmark's folder or file.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the benchmark.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Largest number of questions.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of an answer where no line says so.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions of a batch.")] = 16,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = 0,
    stop: Stop = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    workers: Workers = None,
    tp: TensorParallel = 1,
    pp: PipelineParallel = 1,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Answer questions about images and videos; a second start resumes.

    Several workers, --tp and --pp start processes by themselves, unless torchrun did already.
    Questions that cannot be asked are listed with reasons in a .rejected.jsonl beside the output,
    and asked again once their lines are deleted there.
    """
    if (input is None) == (task is None) or (task is None) != (data is None):
        raise ConfigError("expected either --input, or --task with --data")
    check_dtype(dtype)
    from dct_vl.inference.generate.replicas import parallel_sizes, start_processes

    # OSError: no room or no right to write; transformers says so of damaged folders too
    with one_line_errors(OSError):
        sizes = parallel_sizes(tp, pp, workers)
        if (status := start_processes(sizes)) is not None:
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
        from dct_vl.inference.generate.engine import open_engine
        from dct_vl.inference.generate.journal import Journal
        from dct_vl.inference.generate.replicas import join_replica_group
        from dct_vl.inference.generate.run import generate as run

        group = join_replica_group(sizes)
        engine = open_engine(
            model,
            settings,
            sizes,
            trust_remote_code=trust_remote_code,
            dtype=torch_dtype(dtype),
        )
        journal = Journal(output)
        done = run(engine, requests, journal, group, settings, batch_size=batch_size)
    if done is None:
        return
    bounds = f"pixels {engine.min_pixels}-{engine.max_pixels}"
    typer.echo(f"{output}: {done.num_answered} answers in {done.seconds:.0f} s, {bounds}")
    if done.num_rejected:
        typer.echo(f"{done.num_rejected} rejected: {journal.rejected}", err=True)


def answers(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Option(help="JSONL to write, one line a question.")],
    data: Shards = None,
    split: Annotated[str, typer.Option(help="Split to ask about.")] = "val",
    limit: Limit = None,
    blank: Annotated[bool, typer.Option(help="Replace images and videos by grey ones.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions of a batch.")] = 32,
    workers: Workers = None,
    tp: TensorParallel = 1,
    pp: PipelineParallel = 1,
) -> None:
    """Answer every question of a split greedily and compare with the true answers.

    A second start resumes. Several workers, --tp and --pp start processes by themselves, unless
    torchrun did already.
    """
    from dct_vl.inference.generate.answers import AnswerOptions, write_answers
    from dct_vl.inference.generate.replicas import (
        join_replica_group,
        parallel_sizes,
        start_processes,
    )
    from dct_vl.inference.loading import load_checkpoint, with_data_path

    options = AnswerOptions(split=split, limit=limit, blank=blank, batch_size=batch_size)
    with one_line_errors():
        sizes = parallel_sizes(tp, pp, workers)
        if (status := start_processes(sizes)) is not None:
            raise typer.Exit(status)
        group = join_replica_group(sizes)
        model = load_checkpoint(checkpoint)
        if data is not None:
            model = with_data_path(model, str(data))
        done = write_answers(model, options, output, group)
    if done is None:
        return
    typer.echo(
        f"{output}: {done.share:.4f} exact, step {model.step}, {'blank ' if blank else ''}{split}"
    )
    if done.rejected.by_reason:
        typer.echo(str(done.rejected), err=True)


def check_dtype(dtype: str | None) -> None:
    """Raises ConfigError for what `torch_dtype` does not know."""
    if dtype not in (None, "bf16", "fp32"):
        raise ConfigError(f"dtype is {dtype!r}, expected bf16 or fp32")


def torch_dtype(dtype: str | None) -> torch.dtype | None:
    """A checked name as torch has it."""
    import torch

    return {None: None, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]


def answer_settings(
    *,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int,
    stop: list[str] | None,
    min_pixels: int | None,
    max_pixels: int | None,
) -> AnswerSettings:
    """What the options say of answers.

    Raises:
        ValueError: numbers out of their range.
    """
    from dct_vl.inference.sampling import AnswerSettings, Sampling

    return AnswerSettings(
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
        stop=tuple(stop or ()),
        min_pixels=min_pixels,
        max_pixels=max_pixels,
    )


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
    from dct_vl.evaluation.tasks.requests import TaskRequests

    found = find_task(task)
    return TaskRequests(found, data, split=split, max_new_tokens=max_new_tokens, limit=limit)
