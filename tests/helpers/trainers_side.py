"""What the trainer's own module says to questions about picture files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import torch
from transformers import AutoTokenizer

from data_prep.schema import Turn
from dct_tokenizer import VisualTokenizer
from dct_vl.inference.decode import prompt_batch
from dct_vl.inference.generate.engine import CheckpointEngine, Reply, encode_request
from dct_vl.inference.generate.hf_engine import HfEngine
from dct_vl.inference.generate.requests import Request
from dct_vl.inference.loading import LoadedModel
from dct_vl.inference.sampling import AnswerSettings
from dct_vl.inputs.chat import ChatTokenizer
from dct_vl.runs.checkpoint_files import META_NAME
from dct_vl.runs.config.compose import compose_config


def loaded(
    module: Any,
    visual: VisualTokenizer,
    folder: Path,
    *,
    data: Path | str = "",
    checkpoint: Path | None = None,
) -> LoadedModel:
    """A module as if it had been loaded from a checkpoint; `checkpoint` becomes a folder that says
    which.
    """
    if checkpoint is not None:
        checkpoint.mkdir(parents=True)
        (checkpoint / META_NAME).write_bytes(orjson.dumps({"step": 0, "id": "made up"}))
    return LoadedModel(
        run=compose_config([f"data.path={data}", f"model.path={folder}", "tokenizer=pixel"]),
        checkpoint=checkpoint,
        step=0,
        module=module,
        visual=visual,
        chat=ChatTokenizer(AutoTokenizer.from_pretrained(folder)),
    )


def transformers_engine(folder: Path, settings: AnswerSettings) -> HfEngine:
    """Of a folder that this project's own model would answer, through transformers."""
    return HfEngine(folder, settings, device=torch.device("cpu"), dtype=torch.float32)


def question(text: str, files: Sequence[Path] = ()) -> Request:
    """A question about pictures that precede it."""
    turns = (Turn(role="user", text=text),)
    return Request(key=text, turns=turns, images=tuple(files), videos=(), max_new_tokens=16)


@torch.no_grad()
def prompt_logits(model: LoadedModel, asked: Request) -> torch.Tensor:
    """(S, vocabulary) over the whole prompt."""
    sample = encode_request(model, asked)
    return model.module(prompt_batch(model, [sample]))[0]


def replies(model: LoadedModel, questions: Sequence[Request], **options: Any) -> list[Reply]:
    """Greedy answers of one batch; options of `CheckpointEngine`."""
    engine = CheckpointEngine(model, AnswerSettings(), **options)
    return engine.answer([engine.encode(one) for one in questions])
