"""`dct-vl generate` and `answers`, and the options of every verb that has an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dct_vl.errors import ConfigError
from dct_vl.verbs import one_line_errors

if TYPE_CHECKING:
    import torch

    from dct_vl.inference.generate.replicas import ParallelSizes
    from dct_vl.inference.generate.requests import Requests
    from dct_vl.inference.sampling import AnswerSettings

Checkpoint = Annotated[Path, typer.Argument(help="A run's folder, or one checkpoint in it.")]
Shards = Annotated[Path | None, typer.Option(help="Prepared shards; the run's own by default.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Largest number of samples.")]
Temperature = Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")]
TopP = Annotated[
    float, typer.Option(help="Sample among the likeliest tokens of this joint probability.")
]
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
    batch_size: Annotated[int, typer.Option(min=1, help="Answers at the same time.")] = 16,
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
    compute_dtype = torch_dtype(dtype)
    # OSError: no room or no right to write; transformers says so of damaged folders too
    with one_line_errors(OSError):
        sizes = _started(tp, pp, workers)
        from dct_vl.inference.generate.engine import open_engine
        from dct_vl.inference.generate.journal import Journal
        from dct_vl.inference.generate.replicas import join_replica_group
        from dct_vl.inference.generate.requests import FileRequests
        from dct_vl.inference.generate.run import generate as run

        settings = answer_settings(temperature, top_p, top_k, seed, stop, min_pixels, max_pixels)
        requests: Requests
        if input is not None:
            requests = FileRequests(input, max_new_tokens=max_new_tokens or 128, limit=limit)
        else:
            from dct_vl.evaluation.tasks.registry import find_task
            from dct_vl.evaluation.tasks.task import TaskRequests

            assert task is not None
            assert data is not None
            requests = TaskRequests(
                find_task(task), data, split=split, max_new_tokens=max_new_tokens, limit=limit
            )
        group = join_replica_group(sizes)
        engine = open_engine(
            model,
            settings,
            sizes,
            trust_remote_code=trust_remote_code,
            dtype=compute_dtype,
            num_requests=len(requests.keys),
        )
        journal = Journal(output)
        done = run(engine, requests, journal, group, settings, batch_size=batch_size)
    if done is None:
        return
    bounds = f"pixels {engine.min_pixels}-{engine.max_pixels}"
    typer.echo(
        f"{output}: {done.num_answered} answers in {done.seconds:.0f} s, of which the model waited "
        f"{done.wait_seconds:.0f} s for requests, {bounds}"
    )
    if done.num_rejected:
        typer.echo(f"{done.num_rejected} rejected: {journal.rejected}", err=True)


def answers(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Option(help="JSONL to write, one line a question.")],
    data: Shards = None,
    split: Annotated[str, typer.Option(help="Split to ask about.")] = "val",
    limit: Limit = None,
    blank: Annotated[bool, typer.Option(help="Replace images and videos by grey ones.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers at the same time.")] = 32,
    workers: Workers = None,
    tp: TensorParallel = 1,
    pp: PipelineParallel = 1,
) -> None:
    """Answer every question of a split greedily and compare with the true answers.

    A second start resumes. Several workers, --tp and --pp start processes by themselves, unless
    torchrun did already.
    """
    with one_line_errors():
        sizes = _started(tp, pp, workers)
        from dct_vl.inference.generate.answers import AnswerOptions, write_answers
        from dct_vl.inference.generate.replicas import join_replica_group
        from dct_vl.inference.loading import load_checkpoint, with_data_path

        options = AnswerOptions(split=split, limit=limit, blank=blank, batch_size=batch_size)
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


def torch_dtype(name: str | None) -> torch.dtype | None:
    """A dtype as torch has it; a ConfigError unless it is bf16 or fp32."""
    if name not in (None, "bf16", "fp32"):
        raise ConfigError(f"dtype is {name!r}, expected bf16 or fp32")
    import torch

    return {None: None, "bf16": torch.bfloat16, "fp32": torch.float32}[name]


def answer_settings(
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int,
    stop: list[str] | None,
    min_pixels: int | None,
    max_pixels: int | None,
) -> AnswerSettings:
    """What the options say of answers; a ValueError where a number is out of its range."""
    from dct_vl.inference.sampling import AnswerSettings, Sampling

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    return AnswerSettings(
        sampling=sampling, stop=tuple(stop or ()), min_pixels=min_pixels, max_pixels=max_pixels
    )


def _started(tp: int, pp: int, workers: int | None) -> ParallelSizes:
    """Start the processes where they are several; they go on, and this one ends with them."""
    from dct_vl.inference.generate.replicas import parallel_sizes, start_processes

    sizes = parallel_sizes(tp, pp, workers)
    if (status := start_processes(sizes)) is not None:
        raise typer.Exit(status)
    return sizes
