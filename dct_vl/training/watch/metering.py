"""What a step consumed: samples, tokens by kind, cells, and the samples' keys."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state as ps

from dct_vl.inputs.batch import Batch
from dct_vl.inputs.words import score_words


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What one micro batch is made of."""

    sample_keys: tuple[str, ...]
    num_rows: int
    #: tokens of a row, padding included
    row_length: int
    num_text_tokens: int
    num_visual_tokens: int
    num_padding_tokens: int
    #: ViT patches
    num_cells: int
    longest_segment: int


@dataclass
class StepMeter:
    """Sums over the micro batches of a step on this rank."""

    num_samples: int = 0
    num_text_tokens: int = 0
    num_visual_tokens: int = 0
    num_padding_tokens: int = 0
    num_answer_tokens: int = 0
    num_cells: int = 0
    #: Σ length² over the ViT's attention segments, over its windows where it has any, and over the
    #: samples in tokens
    num_cell_pairs: int = 0
    num_window_pairs: int = 0
    num_token_pairs: int = 0
    sample_keys: list[str] = field(default_factory=list)
    micro_batches: list[MicroBatch] = field(default_factory=list, compare=False)

    def add(self, batch: Batch) -> None:
        """Count one micro batch of the loader, on the host."""
        visual = batch.visual
        assert visual is not None
        assert batch.loss_mask is not None
        rows, length = batch.input_ids.shape
        added = MicroBatch(
            sample_keys=batch.sample_keys,
            num_rows=rows,
            row_length=length,
            num_text_tokens=batch.num_text_tokens,
            num_visual_tokens=batch.num_visual_tokens,
            num_padding_tokens=batch.num_padding_tokens,
            num_cells=len(visual.cells),
            longest_segment=visual.segments.longest,
        )
        self.micro_batches.append(added)
        self.sample_keys += added.sample_keys
        self.num_samples += len(added.sample_keys)
        self.num_text_tokens += added.num_text_tokens
        self.num_visual_tokens += added.num_visual_tokens
        self.num_padding_tokens += added.num_padding_tokens
        self.num_answer_tokens += int(batch.loss_mask.sum())
        self.num_cells += added.num_cells
        self.num_cell_pairs += visual.segments.num_pairs
        if visual.windows is not None:
            self.num_window_pairs += visual.windows.segments.num_pairs
        self.num_token_pairs += sum(length**2 for length in batch.sample_lengths)

    def totals(self, group: dist.ProcessGroup, device: torch.device) -> dict[str, int]:
        """Sums over the data-parallel ranks of `group`; every rank must call it."""
        lists = ("sample_keys", "micro_batches")
        names = [n for n in self.__dataclass_fields__ if n not in lists]
        values = torch.tensor([getattr(self, n) for n in names], device=device)
        dist.all_reduce(values, group=group)
        return dict(zip(names, values.tolist(), strict=True))


@dataclass
class WordMeter:
    """Teacher-forced words of validation batches; see `dct_vl.inputs.words`.

    Args:
        roles: from `dct_vl.inputs.words.token_roles`; without them nothing is counted.
    """

    roles: np.ndarray | None = None
    num_words: int = 0
    num_right: int = 0

    def add(self, labels: torch.Tensor, loss_mask: torch.Tensor, is_right: torch.Tensor) -> None:
        """Count one micro batch: labels, loss mask and hits, each (B, S)."""
        if self.roles is None:
            return
        labels, is_answer, is_right = (f.cpu() for f in (labels, loss_mask > 0, is_right))
        words, right = score_words(labels.numpy(), is_answer.numpy(), is_right.numpy(), self.roles)
        self.num_words += int(words.sum())
        self.num_right += int(right.sum())

    def totals(self) -> tuple[int, int]:
        """(words, right words) over all ranks; every rank must call it.

        The tensor- and context-parallel ranks of a last pipeline stage each counted the same words.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        values = torch.tensor([self.num_words, self.num_right], device=device)
        dist.all_reduce(values)
        copies = ps.get_tensor_model_parallel_world_size() * ps.get_context_parallel_world_size()
        num_words, num_right = (values // copies).tolist()
        return num_words, num_right
