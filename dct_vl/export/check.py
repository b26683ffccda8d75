"""Reload an exported folder in transformers and compare it with the model it came from."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from data_prep.schema import Turn
from dct_vl.export.tensors import ExportError
from dct_vl.inference.loading import LoadedModel
from dct_vl.inputs.batch import pad_batch
from dct_vl.inputs.held_out import HeldOut
from dct_vl.inputs.images import decode_rgb, header_size
from dct_vl.inputs.pictures import encode_pictures
from dct_vl.inputs.plan_chat import place_media
from dct_vl.inputs.samples import EncodedChat

_FIELDS = ("input_ids", "position_ids", "cells", "vit_positions", "vit_cu_seqlens", "vit_grids")


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
    asked = (sample for sample in samples if can_be_asked(model, sample))
    for turns, images in _prompts(asked):
        text = processor.apply_chat_template(
            model.chat.messages(turns, len(images)), tokenize=False, add_generation_prompt=True
        )
        pictures = [Image.open(io.BytesIO(data)) for data in images]
        inputs = processor(text=[text], images=pictures or None, return_tensors="pt")
        wanted = prompt_logits(model, turns, images)
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
    """Training would take the sample, and it has no video."""
    try:
        model.chat.messages(sample.record.turns, len(sample.images))
        for data in sample.images:
            model.visual.plan(*header_size(data))
            decode_rgb(data)
    except ValueError:
        return False
    return not sample.videos


def _prompts(samples: Iterable[HeldOut]) -> Iterator[tuple[tuple[Turn, ...], tuple[bytes, ...]]]:
    for sample in samples:
        turns = sample.record.turns
        answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
        if answers:
            yield turns[: answers[-1]], sample.images


@torch.inference_mode()
def prompt_logits(
    model: LoadedModel, turns: tuple[Turn, ...], images: tuple[bytes, ...]
) -> torch.Tensor:
    """(S, vocabulary) of the trainer's model, the padding of the vocabulary cut off."""
    visual = model.visual
    plans = [visual.plan(*header_size(data)) for data in images]
    pictures = encode_pictures(visual, [decode_rgb(data) for data in images], plans)
    chat = model.chat.prompt(turns, len(images))
    ids, is_answer, positions = place_media(chat, model.chat.pad_ids, pictures.plans)
    sample = EncodedChat(
        __key__="",
        __restore_key__=(),
        input_ids=ids,
        is_answer=is_answer,
        position_ids=positions,
        pictures=pictures,
    )
    batch: dict[str, Any] = pad_batch([sample], visual=visual, pad_to=None, pad_multiple=1)
    logits: torch.Tensor = model.module(**{n: batch[n].to(model.device) for n in _FIELDS})[0]
    return logits[:, : model.module.config.language_transformer_config.vocab_size]
