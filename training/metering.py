"""What a step consumed: samples, tokens by kind, cells, and the samples' keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist


@dataclass
class StepMeter:
    """Sums over the micro batches of a step on this rank."""

    num_samples: int = 0
    num_text_tokens: int = 0
    num_visual_tokens: int = 0
    num_padding_tokens: int = 0
    num_answer_tokens: int = 0
    num_cells: int = 0
    sample_keys: list[str] = field(default_factory=list)

    def add(self, batch: dict[str, Any]) -> None:
        """Count one micro batch (fields of `training.data.batch.pad_batch`, on the CPU)."""
        text, visual, padding = batch["num_tokens"].tolist()
        self.num_samples += len(batch["sample_keys"])
        self.num_text_tokens += text
        self.num_visual_tokens += visual
        self.num_padding_tokens += padding
        self.num_answer_tokens += int(batch["loss_mask"].sum())
        self.num_cells += len(batch["cells"])
        self.sample_keys += batch["sample_keys"]

    def totals(self, group: dist.ProcessGroup, device: torch.device) -> dict[str, int]:
        """Sums over the data-parallel ranks of `group`; every rank must call it."""
        names = [n for n in self.__dataclass_fields__ if n != "sample_keys"]
        values = torch.tensor([getattr(self, n) for n in names], device=device)
        dist.all_reduce(values, group=group)
        return dict(zip(names, values.tolist(), strict=True))
