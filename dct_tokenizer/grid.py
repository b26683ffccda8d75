"""What tokenizers of equal square cells share, whatever they make of a cell."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import torch

from dct_tokenizer.base import VisualTokenizer
from dct_tokenizer.front_end import PATCH_FRAMES, FrontEnd
from dct_tokenizer.geometry import MERGE, regular_plan, smart_resize
from dct_tokenizer.plan import Plan


@dataclass(frozen=True, kw_only=True)
class GridTokenizer(VisualTokenizer):
    """Cells of B x B pixels that fill the resized picture; 2 x 2 of them are an LLM token."""

    family: ClassVar[str]

    #: B
    cell: int

    @property
    def cell_frames(self) -> int:
        """Frames of a clip that a cell spans."""
        return PATCH_FRAMES

    def plan(self, height: int, width: int, frames: int = 1) -> Plan:
        """See `VisualTokenizer.plan`."""
        new_height, new_width = smart_resize(
            height,
            width,
            factor=MERGE * self.cell,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )
        return regular_plan(
            height=new_height,
            width=new_width,
            frames=frames,
            cell=self.cell,
            frames_per_cell=self.cell_frames,
        )

    def front_end(self, embed_dim: int, pretrained_weight: torch.Tensor | None = None) -> FrontEnd:
        """`random_front_end`, started from the pretrained weight where there is one."""
        module = self.random_front_end(embed_dim)
        if pretrained_weight is not None:
            module.load_pretrained(pretrained_weight)
        return module

    @abc.abstractmethod
    def random_front_end(self, embed_dim: int) -> FrontEnd:
        """A front end of embedding width `embed_dim` with random parameters."""
