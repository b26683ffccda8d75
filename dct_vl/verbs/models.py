"""`dct-vl export`, `import` and `random-model`: Hugging Face folders out, in and made up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from dct_vl.errors import ConfigError
from dct_vl.verbs import one_line_errors
from dct_vl.verbs.generate import Checkpoint, torch_dtype

#: every word becomes one token where no corpus is given
DEFAULT_CORPUS = ["What color is the shape? Where is it? How many are there?"] * 10


def export(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Argument(help="New folder to write.")],
    dtype: Annotated[
        str | None, typer.Option(help="bf16 or fp32; the checkpoint's own by default.")
    ] = None,
    check: Annotated[
        int, typer.Option(min=0, help="Validation samples to compare after a reload.")
    ] = 0,
    outside: Annotated[
        int, typer.Option(min=0, help="Validation samples to ask without this project.")
    ] = 0,
    lora: Annotated[
        str, typer.Option(help="merge, or adapter for a PEFT folder of the adapters alone.")
    ] = "merge",
) -> None:
    """Write a Hugging Face folder that transformers loads without this project.

    --outside asks the folder in a process that cannot import this project; its answers go to
    OUTPUT.answers.jsonl.
    """
    chosen = torch_dtype(dtype)
    if lora not in ("merge", "adapter"):
        raise ConfigError(f"lora is {lora!r}, expected merge or adapter")
    from dct_vl.export.checkpoint import export_adapters, export_checkpoint

    with one_line_errors():
        if lora == "adapter":
            num_bytes = export_adapters(checkpoint, output, dtype=chosen)
            typer.echo(f"{output}: adapters, {num_bytes / 1e6:,.1f} MB")
            return
        exported = export_checkpoint(checkpoint, output, dtype=chosen, check=check, outside=outside)
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


def import_(
    folder: Annotated[Path, typer.Argument(help="Hugging Face folder of the model.")],
    output: Annotated[Path, typer.Argument(help="New folder: a run with one checkpoint, step 0.")],
    tokenizer: Annotated[
        str, typer.Option(help="Preset whose front end starts from the folder's patch embedding.")
    ] = "pixel",
) -> None:
    """Write a NeMo checkpoint that every verb takes like a run's; nothing is trained."""
    from dct_vl.export.import_hf import import_folder

    with one_line_errors():
        checkpoint = import_folder(folder, output, tokenizer=tokenizer)
    typer.echo(f"{checkpoint}: {tokenizer}")


def random_model(
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    shape: Annotated[
        str,
        typer.Option(help="tiny, small (27 M parameters), 2b (4.4 GB), tiny25, 3b25 (7.5 GB)."),
    ] = "tiny",
    corpus: Annotated[
        Path | None,
        typer.Option(help="JSON in the LLaVA layout; its conversations train the text tokenizer."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
) -> None:
    """Write a Qwen2-VL or Qwen2.5-VL folder with random weights that loads like the hub's."""
    from dct_vl.model.random_model import ShapeName, write_random_model
    from dct_vl.model.random_model.tokenizer import conversation_texts

    name = next((n for n in get_args(ShapeName) if n == shape), None)
    if name is None:
        names = ", ".join(get_args(ShapeName))
        raise ConfigError(f"shape is {shape!r}, expected one of {names}")
    texts = DEFAULT_CORPUS if corpus is None else conversation_texts(corpus)
    with one_line_errors():
        write_random_model(output, shape=name, corpus=texts, seed=seed)
    size = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    typer.echo(f"{output}: {shape}, {size / 1e6:,.1f} MB of weights, seed {seed}")
