"""The verb `chat` of `dct-vl`."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dct_vl.inference.generate.options import (
    Dtype,
    PixelBound,
    Stop,
    Temperature,
    TopK,
    TopP,
    TrustRemoteCode,
    answer_settings,
    check_dtype,
    torch_dtype,
)

if TYPE_CHECKING:
    from dct_vl.inference.generate.engine import AnswerSettings, Engine


def chat(
    models: Annotated[
        list[Path],
        typer.Argument(
            help="Runs, checkpoints in them, or Hugging Face folders; several with --web."
        ),
    ],
    web: Annotated[bool, typer.Option("--web", help="In a browser instead of here.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the page.")] = 7860,
    host: Annotated[
        str, typer.Option(help="Address of the page; by default this machine alone sees it.")
    ] = "127.0.0.1",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Annotated[int, typer.Option(help="Of what is drawn, with the turn's number.")] = 0,
    stop: Stop = None,
    min_pixels: PixelBound = None,
    max_pixels: PixelBound = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Talk with a model about pictures and videos; /help lists the commands.

    Through a pipe, each line is a command or a question, answers alone go to the standard output,
    and the exit status says whether every line could be done.
    """
    check_dtype(dtype)
    if len(models) > 1 and not web:
        raise typer.BadParameter(f"{len(models)} models: the terminal takes one, --web several")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise typer.BadParameter("a chat runs in one process: start it without torchrun")
    if web and importlib.util.find_spec("gradio") is None:
        raise typer.BadParameter(
            "--web needs Gradio, which is not installed: python -m pip install "
            "--constraint constraints/cpu.txt --constraint constraints/web.txt --editable '.[web]'"
        )
    try:
        settings = answer_settings(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=stop,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        )
        engines = [_open(path, settings, dtype, trust_remote_code) for path in models]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if web:
        from dct_vl.inference.chat.web import serve

        try:
            serve(dict(zip(models, engines, strict=True)), max_new_tokens, host=host, port=port)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        return
    from dct_vl.inference.chat.terminal import HELP, Terminal, typed_lines

    engine = engines[0]
    typer.echo(f"{models[0]}: {engine.visual.name}, {_bounds(engine)}", err=True)
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


def _open(path: Path, settings: AnswerSettings, dtype: str | None, trusted: bool) -> Engine:
    from dct_vl.inference.generate.open_engine import open_engine
    from dct_vl.inference.generate.teams import Layout, start_team

    layout = Layout()
    start_team(layout)
    return open_engine(
        path,
        settings,
        layout,
        trust_remote_code=trusted,
        dtype=torch_dtype(dtype),
    )


def _bounds(engine: Engine) -> str:
    return f"pixels {engine.min_pixels}-{engine.max_pixels}"
