"""What passes over held-out samples tell without decoding: words predicted right, and speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import torch
from tqdm import tqdm

from data_prep.durable import atomic_write
from dct_vl.inference.generate.engine import encode_sample
from dct_vl.inference.loading import LoadedModel
from dct_vl.inputs.batch import Batch, pad_batch
from dct_vl.inputs.rejects import RejectedSamples
from dct_vl.inputs.samples import EncodedChat
from dct_vl.inputs.shard_reader import HeldOut, read_split
from dct_vl.inputs.words import score_words, token_roles
from dct_vl.model.language_model import scored_forward
from dct_vl.runs.result_files import beside


@dataclass(frozen=True, kw_only=True)
class WordsRead:
    """Counts over all samples that were scored."""

    num_words: int
    num_right: int
    #: samples that training would reject
    rejected: RejectedSamples

    @property
    def share(self) -> float:
        """Words that are right, 0..1."""
        return self.num_right / self.num_words


def write_words(
    model: LoadedModel, output: Path, *, split: str, limit: int | None, batch_size: int
) -> WordsRead:
    """Write one JSON line a sample to `output`, e.g. words.jsonl.

    A line holds key, source, step, num_words, num_right and num_visual_tokens. Samples that
    training would reject go to words.rejected.jsonl beside it.

    Raises:
        ValueError: the split has no sample, or its answers have no word.
    """
    tokenizer = model.chat.tokenizer
    roles = token_roles(tokenizer, len(tokenizer))
    rejected = RejectedSamples(beside(output, "rejected.jsonl"))
    samples = encoded_samples(model, split, limit, on_fault=rejected.add)
    total = right = 0
    with atomic_write(output) as file, tqdm(desc=output.stem, unit="sample") as bar:
        while batch := list(islice(samples, batch_size)):
            for line in _score(model, batch, roles):
                file.write(orjson.dumps(line) + b"\n")
                total += line["num_words"]
                right += line["num_right"]
            bar.update(len(batch))
            if total:
                bar.set_postfix(right=f"{right / total:.4f}")
        if not total:
            found = f": {rejected}" if rejected.by_reason else ""
            raise ValueError(
                f"the answers of the {split} split of {model.run.data.path} have no word{found}"
            )
    return WordsRead(num_words=total, num_right=right, rejected=rejected)


def encoded_samples(
    model: LoadedModel,
    split: str,
    limit: int | None,
    *,
    on_fault: Callable[[str, ValueError], None],
) -> Iterator[tuple[HeldOut, EncodedChat]]:
    """Samples of a split of the run's shards, at most `limit`, each as training sees it.

    `on_fault` is called with the key of a sample that training would reject, and the reason.

    Raises:
        ValueError: the split has no sample.
    """
    for sample in read_split(model.run.data.path_of(split), split, limit, on_fault=on_fault):
        try:
            encoded = encode_sample(model, sample)
        except ValueError as error:
            on_fault(sample.key, error)
        else:
            yield sample, encoded


def _score(
    model: LoadedModel, batch: Sequence[tuple[HeldOut, EncodedChat]], roles: Any
) -> Iterator[dict[str, Any]]:
    encoded_chats = [encoded for _, encoded in batch]
    rows = pad_batch(encoded_chats, visual=model.visual, pad_to=None, pad_multiple=8)
    assert rows.labels is not None
    assert rows.loss_mask is not None
    with torch.inference_mode():
        _, is_right = scored_forward(model.module, model.on_device(rows))
    assert is_right is not None
    words, right = score_words(
        rows.labels.numpy(), rows.loss_mask.numpy() > 0, is_right.cpu().numpy(), roles
    )
    for (sample, encoded), num_words, num_right in zip(batch, words, right, strict=True):
        yield {
            "key": sample.key,
            "source": sample.record.source,
            "step": model.step,
            "num_words": int(num_words),
            "num_right": int(num_right),
            "num_visual_tokens": int((encoded.input_ids < 0).sum()),
        }


_WARM_UP, _ROUNDS = 3, 10


def write_speed(model: LoadedModel, output: Path, *, split: str, batch_size: int) -> float:
    """Write samples_per_second, batch_size, visual_tokens (of the batch) and device to `output`.

    Returns samples a second: batch size by the median of 10 passes after 3 that do not count.

    Raises:
        ValueError: the split has no sample that training would take.
    """
    rejected: list[str] = []
    samples = encoded_samples(
        model, split, None, on_fault=lambda key, error: rejected.append(f"{key}: {error}")
    )
    encoded = [one for _, one in islice(samples, batch_size)]
    if not encoded:
        raise ValueError(
            f"the {split} split of {model.run.data.path} has no sample that training would take"
            + "".join(f"; {found}" for found in rejected[:1])
        )
    batch = pad_batch(encoded, visual=model.visual, pad_to=None, pad_multiple=8)
    batch = model.on_device(batch)
    seconds = [_pass(model, batch) for _ in range(_WARM_UP + _ROUNDS)][_WARM_UP:]
    speed = len(encoded) / statistics.median(seconds)
    device = model.device
    line = {
        "samples_per_second": speed,
        "batch_size": len(encoded),
        "visual_tokens": batch.num_visual_tokens,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    output.write_bytes(orjson.dumps(line, option=orjson.OPT_INDENT_2))
    return speed


def _pass(model: LoadedModel, batch: Batch) -> float:
    """Seconds of one forward and backward pass."""
    start = _now(model.device)
    losses, loss_mask = model.module(batch)
    (losses * loss_mask).sum().backward()
    model.module.zero_grad(set_to_none=True)
    return _now(model.device) - start


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
