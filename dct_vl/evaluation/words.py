"""Teacher-forced words of held-out samples: one forward pass a batch, every word scored.

Much faster than decoding, and equal to greedy accuracy where the words of an answer do not depend
on each other; see `dct_vl.inputs.words`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import torch
from tqdm import tqdm

from data_prep.durable import atomic_write
from dct_vl.inference.generate.checkpoint_engine import encode_sample
from dct_vl.inference.loading import LoadedModel
from dct_vl.inputs.batch import pad_batch
from dct_vl.inputs.held_out import HeldOut, read_split
from dct_vl.inputs.rejected import RejectedSamples
from dct_vl.inputs.samples import EncodedChat
from dct_vl.inputs.words import score_words, token_roles
from dct_vl.model.scoring import scored_forward
from dct_vl.runs.result_files import beside


@dataclass(frozen=True, kw_only=True)
class WordsRead:
    """How it went."""

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
    """Samples of a split of the run's shards, each as training sees it.

    Args:
        model: whose run names the shards.
        split: name of the split.
        limit: samples looked at; None for all.
        on_fault: called with the key of a sample that training would reject, and the reason.

    Raises:
        ValueError: the split has no sample.
    """
    for sample in read_split(model.run.data.path, split, limit, on_fault=on_fault):
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
        _, is_right = scored_forward(model.module, rows.to(model.device))
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
