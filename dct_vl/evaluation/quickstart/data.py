"""What the quickstart's report is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dct_vl.evaluation.quickstart.resume import ResumeProof

#: the page that compares both runs lies there, below the quickstart's folder
COMPARE_FOLDER = "compare"


@dataclass(frozen=True, kw_only=True)
class QuickstartRun:
    """A finished run and its answers on held-out samples."""

    #: name of the tokenizer's preset
    tokenizer: str
    run_dir: Path
    #: JSONL of `dct-vl answers`
    answers: Path


@dataclass(frozen=True, kw_only=True)
class ExportProof:
    """The main run as a Hugging Face folder, in a process that could not import this project."""

    folder: Path
    #: against the trainer's model, over `num_prompts` prompts
    max_abs_logit_diff: float
    num_prompts: int
    #: JSONL of the folder's own answers, to some of the questions that the run was asked
    answers: Path


@dataclass(frozen=True, kw_only=True)
class SamplePicture:
    """A held-out picture and what is left of it; several may share a sample's key.

    Args:
        key: of a sample that was asked about.
        original: uint8 (height, width, 3), RGB.
        seen: the same for the main tokenizer's `decode(encode(cells))`, at its own size.
        seen_by_control: the same for the control's.
    """

    key: str
    original: np.ndarray
    seen: np.ndarray
    seen_by_control: np.ndarray

    def __post_init__(self) -> None:
        """Refuse what is not an RGB picture."""
        for name in ("original", "seen", "seen_by_control"):
            array = getattr(self, name)
            if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
                raise ValueError(
                    f"{name} of {self.key} is {array.dtype} {array.shape}; expected uint8 "
                    "(height, width, 3) in RGB: take frame 0 of a decoded picture"
                )


@dataclass(frozen=True, kw_only=True)
class QuickstartResult:
    """Everything that the report shows."""

    main: QuickstartRun
    control: QuickstartRun
    #: the main run's answers with every picture replaced by an even one
    blank_answers: Path
    resume: ResumeProof
    pictures: tuple[SamplePicture, ...]
    #: None: not shown
    export: ExportProof | None = None
    #: samples that the data preparation left out, by reason
    rejected: Mapping[str, int] = field(default_factory=dict)
    #: samples that it stored; None: not shown
    num_prepared: int | None = None
    #: of the whole quickstart; None: not shown
    seconds_total: float | None = None
