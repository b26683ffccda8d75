"""Ask an exported folder in a process that cannot import this project, and compare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson
import torch

from dct_vl.export.check import can_be_asked, prompt_logits, worst_of
from dct_vl.export.tensors import ExportError
from dct_vl.inference.answers import Question, compared, questions_of
from dct_vl.inference.generate.requests import Request
from dct_vl.inference.loading import LoadedModel
from dct_vl.inputs.shard_reader import read_split

_READER = Path(__file__).with_name("plain_reader.py")


@dataclass(frozen=True, kw_only=True)
class Outside:
    """How the exported folder did."""

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
        folder: the exported folder.
        answers: JSONL to write, in the shape of `dct_vl.inference.answers.write_answers`.
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
            **compared(reply["answer"], line["truth"]),
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
    for sample in read_split(model.run.data.path, "val", limit, on_fault=lambda key, error: None):
        if can_be_asked(model, sample):
            yield from questions_of(sample, model.step)


def _request(model: LoadedModel, request: Request, work: Path, number: int) -> dict[str, Any]:
    images, _ = request.read()
    files = []
    for place, data in enumerate(images):
        files.append(work / f"{number}.{place}")
        files[-1].write_bytes(data)
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
