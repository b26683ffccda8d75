"""The engine that a folder asks for."""

from __future__ import annotations

from pathlib import Path

import torch

from dct_vl.inference.generate.engine import AnswerSettings, Engine
from dct_vl.inference.generate.teams import Layout


def open_engine(
    model: Path,
    settings: AnswerSettings,
    layout: Layout,
    *,
    trust_remote_code: bool = False,
    dtype: torch.dtype | None = None,
) -> Engine:
    """Load a run, a checkpoint or a Hugging Face folder; `start_team` comes before.

    The model computes in `dtype`, by default in bf16 on a GPU and in fp32 on the CPU.

    Raises:
        ValueError: none of these, a folder with code that is not trusted, or one that was to be
            divided over ranks.
    """
    cuda = torch.cuda.is_available()
    chosen = dtype or (torch.bfloat16 if cuda else torch.float32)
    if not (model / "config.json").is_file():
        from dct_vl.inference.generate.checkpoint_engine import CheckpointEngine
        from dct_vl.inference.loading import load_checkpoint

        return CheckpointEngine(load_checkpoint(model, dtype=chosen), settings)
    if layout.tensor * layout.pipeline > 1:
        raise ValueError(
            f"{model} is a Hugging Face folder, which one process holds whole: leave --tp and --pp "
            "out, or import it first (dct-vl import)"
        )
    from dct_vl.inference.generate.hf_engine import HfEngine, brings_code

    if brings_code(model) and not trust_remote_code:
        raise ValueError(f"{model} brings code of its own: add --trust-remote-code to run it")
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    return HfEngine(
        model, settings, device=device, dtype=chosen, trust_remote_code=trust_remote_code
    )
