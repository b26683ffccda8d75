"""Options of the command line that every verb with an engine has: how answers are drawn, and how
the model is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

    from dct_vl.inference.generate.engine import AnswerSettings

Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token.")]
TopP = Annotated[float, typer.Option(help="Draw among tokens of this probability.")]
TopK = Annotated[int, typer.Option(help="Draw among so many tokens; 0 for all.")]
Stop = Annotated[
    list[str] | None, typer.Option(help="Text before which an answer ends; may be repeated.")
]
PixelBound = Annotated[int | None, typer.Option(help="Instead of the model's own.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Copies of the model that share the questions.")
]
TensorParallel = Annotated[int, typer.Option(min=1, help="Tensor-parallel size.")]
PipelineParallel = Annotated[int, typer.Option(min=1, help="Pipeline-parallel size.")]
Dtype = Annotated[
    str | None, typer.Option(help="bf16 or fp32; by default bf16 on a GPU, fp32 on the CPU.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option(help="Run the code that a Hugging Face folder brings.")
]


def check_dtype(dtype: str | None) -> None:
    """Raises typer.BadParameter for what `torch_dtype` does not know."""
    if dtype not in (None, "bf16", "fp32"):
        raise typer.BadParameter(f"dtype is {dtype!r}, expected bf16 or fp32")


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
    from dct_vl.inference.generate.engine import AnswerSettings
    from dct_vl.inference.sampling import Sampling

    return AnswerSettings(
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
        stop=tuple(stop or ()),
        min_pixels=min_pixels,
        max_pixels=max_pixels,
    )
