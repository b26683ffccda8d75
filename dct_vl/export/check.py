"""Compare an exported folder, loaded by plain transformers, with the model that it came from."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from dct_tokenizer.decode import decode_rgb
from dct_vl.export.tensors import ExportError
from dct_vl.inference.decode import logits_of
from dct_vl.inference.generate.answers import Question, is_exact, questions_of
from dct_vl.inference.generate.engine import encode_request, encode_sample
from dct_vl.inference.generate.requests import Request
from dct_vl.inference.loading import LoadedModel
from dct_vl.inputs.chat import render
from dct_vl.inputs.shard_reader import HeldOut, read_split

_READER = Path(__file__).with_name("plain_reader.py")


@torch.inference_mode()
def max_abs_logit_diff(model: LoadedModel, folder: str | Path, samples: Iterable[HeldOut]) -> float:
    """Largest difference of any logit over the prompts of samples, each up to its last answer.

    Both sides run on the model's device in its dtype, one prompt at a time; the folder's through
    its own processor.

    Args:
        samples: conversations; those that `can_be_asked` refuses are left out.

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
        opened = [Image.fromarray(decode_rgb(data)[0]) for data in images]
        inputs = processor(text=[text], images=opened or None, return_tensors="pt")
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


@dataclass(frozen=True, kw_only=True)
class Outside:
    """Answers of the exported folder in a process without this project."""

    num_questions: int
    #: share of answers that are equal to the truth, 0..1
    exact_match: float
    #: against the trainer's model, over `num_prompts_compared` prompts
    max_abs_logit_diff: float
    num_prompts_compared: int


def ask_outside(
    model: LoadedModel, folder: Path, answers: Path, *, num_samples: int, num_compared: int = 8
) -> Outside:
    """Ask about validation samples in plain transformers, one after the other, greedily.

    Args:
        model: what was exported; it computes the logits that are expected.
        answers: JSONL to write, in the shape of `dct_vl.inference.generate.answers.write_answers`.
        num_samples: validation samples that are asked about, at most; those with videos, and those
            that training would reject, are not.
        num_compared: prompts, from the first on, whose logits are compared, all of a prompt.

    Raises:
        ValueError: the folder does not load there, or the split has nothing to ask.
    """
    with TemporaryDirectory() as temporary:
        work = Path(temporary)
        lines: list[dict[str, Any]] = []
        expected: dict[str, np.ndarray] = {}
        with open(work / "requests.jsonl", "wb") as file:
            for question in _questions(model, num_samples):
                number = len(lines)
                file.write(orjson.dumps(_request(model, question.request, work, number)) + b"\n")
                if number < num_compared:
                    logits = prompt_logits(model, question.request)
                    expected[str(number)] = logits.float().cpu().numpy()
                lines.append(question.line)
        if not lines:
            raise ExportError(f"the val split of {model.run.data.path} has nothing to ask")
        np.savez(work / "expected.npz", **expected)  # type: ignore[arg-type]
        dtype = str(next(model.module.parameters()).dtype).removeprefix("torch.")
        said = _start(folder.resolve(), work, dtype)
    answered = [
        {
            **line,
            "answer": reply["answer"],
            "correct": is_exact(reply["answer"], line["truth"]),
            "num_visual_tokens": reply["num_visual_tokens"],
        }
        for line, reply in zip(lines, said, strict=True)
    ]
    answers.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in answered))
    return Outside(
        num_questions=len(answered),
        exact_match=sum(line["correct"] for line in answered) / len(answered),
        max_abs_logit_diff=worst_of([s["max_abs_logit_diff"] for s in said[:num_compared]], folder),
        num_prompts_compared=min(num_compared, len(said)),
    )


def _questions(model: LoadedModel, limit: int) -> Iterator[Question]:
    for sample in read_split(
        model.run.data.path_of("val"), "val", limit, on_fault=lambda key, error: None
    ):
        if can_be_asked(model, sample):
            yield from questions_of(sample, model.step)


def _request(model: LoadedModel, request: Request, work: Path, number: int) -> dict[str, Any]:
    images, _ = request.read()
    files = []
    for index, data in enumerate(images):
        files.append(work / f"{number}.{index}.png")
        # pixels as the trainer sees them: the reader is without its decoder
        Image.fromarray(decode_rgb(data)[0]).save(files[-1], compress_level=1)
    return {
        "messages": model.chat.messages(request.turns, len(images)),
        "images": [str(file) for file in files],
        "max_new_tokens": request.max_new_tokens,
    }


def _start(folder: Path, work: Path, dtype: str) -> list[dict[str, Any]]:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    output = work / "said.jsonl"
    files = [folder, work / "requests.jsonl", work / "expected.npz", output]
    done = subprocess.run(
        [sys.executable, "-I", str(_READER), *map(str, files), dtype],
        capture_output=True,
        text=True,
        cwd=work,
        # the folder's code is copied into the cache of modules before it is run
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(work / "modules")},
    )
    if done.returncode:
        raise ExportError(
            f"{folder} does not answer in plain transformers: {done.stderr.strip()[-2000:]}"
        )
    # the standard library's, which wrote it: it knows NaN
    return [json.loads(line) for line in output.read_bytes().splitlines()]
