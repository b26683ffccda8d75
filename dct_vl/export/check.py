"""Reload an exported folder in transformers and compare it with the model it came from."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from dct_vl.export.tensors import ExportError
from dct_vl.inference.answers import questions_of
from dct_vl.inference.decode import logits_of
from dct_vl.inference.generate.checkpoint_engine import encode_request, encode_sample
from dct_vl.inference.generate.requests import Request
from dct_vl.inference.loading import LoadedModel
from dct_vl.inputs.chat import render
from dct_vl.inputs.shard_reader import HeldOut


@torch.inference_mode()
def max_abs_logit_diff(model: LoadedModel, folder: str | Path, samples: Iterable[HeldOut]) -> float:
    """Largest difference of any logit over the prompts of samples, each up to its last answer.

    Both sides run on the model's device in its dtype, one prompt at a time; the folder's through
    its own processor.

    Args:
        model: what was exported.
        folder: the exported folder.
        samples: conversations with pictures or without; what `can_be_asked` refuses is left out.

    Raises:
        ExportError: nothing could be compared, or a logit is not finite.
        ValueError: another number of tokens or words.
    """
    theirs = AutoModelForImageTextToText.from_pretrained(
        folder, trust_remote_code=True, torch_dtype=next(model.module.parameters()).dtype
    )
    theirs = theirs.to(model.device).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True, use_fast=False)
    differences = []
    for sample in samples:
        if not can_be_asked(model, sample):
            continue
        request = questions_of(sample, model.step)[-1].request
        images, _ = request.read()
        text = render(processor, model.chat.messages(request.turns, len(images)))
        pictures = [Image.open(io.BytesIO(data)) for data in images]
        inputs = processor(text=[text], images=pictures or None, return_tensors="pt")
        wanted = prompt_logits(model, request)
        found = theirs(**inputs.to(model.device)).logits[0]
        if found.shape != wanted.shape:
            raise ValueError(
                f"{folder} makes {tuple(found.shape)} logits of a prompt, the trainer "
                f"{tuple(wanted.shape)}: its processor or vocabulary is another one"
            )
        differences.append((found.float() - wanted.float()).abs().max().item())
    return worst_of(differences, folder)


def worst_of(differences: Sequence[float], folder: str | Path) -> float:
    """The largest of them.

    Raises:
        ExportError: there is none, or one is not finite, which no comparison would be larger than.
    """
    if not differences:
        raise ExportError(
            f"{folder} is written, but nothing was compared: none of the validation samples can "
            "be asked about; leave --check and --outside out, or allow more samples"
        )
    if not all(map(math.isfinite, differences)):
        raise ExportError(
            f"{folder} is written, but logits are not finite: the run's weights have diverged, or "
            "do not fit the dtype; look at its losses, name an earlier checkpoint, or try "
            "--dtype fp32"
        )
    return max(differences)


def can_be_asked(model: LoadedModel, sample: HeldOut) -> bool:
    """Training would take the sample, and it has no video, of which the folder's processor takes
    other frames than the run.
    """
    if sample.videos:
        return False
    try:
        encode_sample(model, sample)
    except ValueError:
        return False
    return True


def prompt_logits(model: LoadedModel, request: Request) -> torch.Tensor:
    """(S, vocabulary) of the trainer's model, the padding of the vocabulary cut off."""
    prompt = encode_request(model, request)
    logits = logits_of(model, prompt, torch.arange(len(prompt.input_ids)))
    return logits[:, : model.module.config.language_transformer_config.vocab_size]
