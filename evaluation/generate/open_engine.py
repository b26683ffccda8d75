"""The engine that a folder asks for."""

from __future__ import annotations

from pathlib import Path

from evaluation.generate.engine import AnswerSettings, Engine
from evaluation.generate.teams import Layout


def open_engine(
    model: Path, settings: AnswerSettings, layout: Layout, *, trust_remote_code: bool = False
) -> Engine:
    """Load a run, a checkpoint or a Hugging Face folder; `start_team` comes before.

    Raises:
        ValueError: none of these, a folder with code that is not trusted, or one that was to be
            divided over ranks.
    """
    if not (model / "config.json").is_file():
        from evaluation.generate.checkpoint_engine import CheckpointEngine

        return CheckpointEngine(model, settings)
    if layout.tensor * layout.pipeline > 1:
        raise ValueError(
            f"{model} is a Hugging Face folder, which one process holds whole: leave --tp and --pp "
            "out, or import it first (python -m evaluation import)"
        )
    import torch

    from evaluation.generate.hf_engine import HfEngine, brings_code

    if brings_code(model) and not trust_remote_code:
        raise ValueError(f"{model} brings code of its own: add --trust-remote-code to run it")
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    return HfEngine(model, settings, device=device, trust_remote_code=trust_remote_code)
