"""`dct-vl chat`: in the terminal, through a pipe or in a browser."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from dct_vl.errors import ConfigError
from dct_vl.verbs import one_line_errors
from dct_vl.verbs.generate import (
    Dtype,
    MaxPixels,
    MinPixels,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
    TrustRemoteCode,
    answer_settings,
    torch_dtype,
)


def chat(
    models: Annotated[
        list[Path],
        typer.Argument(
            help="Runs, checkpoints in them, or Hugging Face folders; several with --web."
        ),
    ],
    web: Annotated[bool, typer.Option("--web", help="Serve a page for a browser.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    host: Annotated[
        str, typer.Option(help="Address to listen on; by default only this machine's own.")
    ] = "127.0.0.1",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = 0,
    stop: Stop = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Talk with a model about images and videos; /help lists the commands.

    Through a pipe, each line is a command or a question, answers alone go to the standard output,
    and the exit status says whether every line could be done.
    """
    compute_dtype = torch_dtype(dtype)
    if len(models) > 1 and not web:
        raise ConfigError(f"{len(models)} models: the terminal takes one, --web several")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a chat runs in one process: start it without torchrun")
    if web and importlib.util.find_spec("gradio") is None:
        raise ConfigError(
            "--web needs Gradio, which is not installed: python -m pip install "
            "--constraint constraints/cpu.txt --constraint constraints/web.txt --editable '.[web]'"
        )
    from dct_vl.inference.generate.engine import open_engine
    from dct_vl.inference.generate.replicas import ParallelSizes, join_replica_group

    with one_line_errors():
        settings = answer_settings(temperature, top_p, top_k, seed, stop, min_pixels, max_pixels)
        alone = ParallelSizes()
        join_replica_group(alone)
        engines = [
            open_engine(
                path, settings, alone, trust_remote_code=trust_remote_code, dtype=compute_dtype
            )
            for path in models
        ]
        if web:
            from dct_vl.inference.chat.web import serve

            serve(dict(zip(models, engines, strict=True)), max_new_tokens, host=host, port=port)
            return
    from dct_vl.inference.chat.terminal import HELP, Terminal, typed_lines

    engine = engines[0]
    typer.echo(
        f"{models[0]}: {engine.visual.name}, pixels {engine.min_pixels}-{engine.max_pixels}",
        err=True,
    )
    if sys.stdin.isatty():
        typer.echo(HELP, err=True)
    terminal = Terminal(engine, max_new_tokens=max_new_tokens, output=sys.stdout, errors=sys.stderr)
    try:
        terminal.run(typed_lines())
    except BrokenPipeError:
        # what is left in the buffer goes nowhere when Python flushes it at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    # a person has seen the errors
    raise typer.Exit(int(terminal.num_failed > 0 and not sys.stdin.isatty()))
