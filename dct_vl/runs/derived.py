"""What a run's configuration implies, decided in one place for checks, training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from dct_tokenizer import VisualTokenizer, build_tokenizer
from dct_vl.errors import ConfigError
from dct_vl.inputs.clips import VideoRules
from dct_vl.model.parts import LoraConfig
from dct_vl.runs.config.schema import RunConfig
from dct_vl.runs.config.tuning import trained_parts
from dct_vl.runs.flops import StepFlops, step_flops
from dct_vl.runs.model_sizes import ModelSizes, model_sizes

#: part of a sequence that the tokens of a video may fill, and pixels behind a stock token; the
#: rule by which qwen-vl-utils derives its total from the model's context
_VIDEO_SHARE, _TOKEN_PIXELS = 0.9, 28 * 28
#: lengths of rows are a multiple of it on every rank
_ROW_UNIT = 8
#: patches behind a stock token
_TOKEN_PATCHES = 4


@dataclass(frozen=True)
class RunSettings:
    """Values that a run's configuration implies; each is computed when it is asked for."""

    run: RunConfig

    @cached_property
    def visual(self) -> VisualTokenizer:
        """The visual tokenizer under the run's pixel bounds, or a TokenizerConfigError."""
        data = self.run.data
        return build_tokenizer(
            self.run.tokenizer, min_pixels=data.min_pixels, max_pixels=data.max_pixels
        )

    @property
    def video_rules(self) -> VideoRules:
        """The rules by which frames of videos are taken.

        Raises:
            ValueError: rules that no video can meet; the message names the keys.
        """
        data, total = self.run.data, self.run.data.video_total_pixels
        return VideoRules(
            fps=data.video_fps,
            min_frames=data.video_min_frames,
            max_frames=data.video_max_frames,
            min_pixels=data.video_min_pixels,
            max_pixels=data.video_max_pixels,
            total_pixels=int(_VIDEO_SHARE * data.seq_length * _TOKEN_PIXELS)
            if total is None
            else total,
        )

    @property
    def row_multiple(self) -> int:
        """What lengths of padded rows are a multiple of, for ranks that share a row, tokens."""
        trainer = self.run.trainer
        return _ROW_UNIT * trainer.tensor_parallel_size * trainer.context_parallel_size

    @property
    def has_fixed_rows(self) -> bool:
        """Are all rows data.seq_length long? Packs are, and what pipeline stages exchange."""
        return self.run.data.packing or self.run.trainer.pipeline_parallel_size > 1

    @property
    def max_patches_per_pack(self) -> int:
        """Most ViT patches in a pack: those of seq_length stock tokens, if not set."""
        chosen = self.run.data.max_patches_per_pack
        return _TOKEN_PATCHES * self.run.data.seq_length if chosen is None else chosen

    @property
    def last_step(self) -> int:
        """The step at which this process stops."""
        trainer = self.run.trainer
        return min(trainer.max_steps, trainer.stop_at_step or trainer.max_steps)

    @property
    def on_cuda(self) -> bool:
        """Does the run train on CUDA devices?

        Raises:
            ConfigError: it should, and there are none.
        """
        wanted = self.run.trainer.accelerator
        if wanted not in ("auto", "cpu", "gpu"):
            raise ConfigError(f"trainer.accelerator={wanted!r}; expected auto, cpu or gpu")
        there = torch.cuda.is_available()
        if wanted == "gpu" and not there:
            raise ConfigError(
                "trainer.accelerator=gpu, but torch sees no CUDA device; use cpu or auto"
            )
        if wanted == "cpu" and there:
            raise ConfigError(
                "trainer.accelerator=cpu on a machine with CUDA devices: hide them with "
                "CUDA_VISIBLE_DEVICES= so that NeMo does not use them"
            )
        return there

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters and activations.

        Raises:
            ConfigError: an unknown one, or see `on_cuda`.
        """
        wanted = self.run.model.dtype
        choices = {"bf16": torch.bfloat16, "fp32": torch.float32}
        if wanted == "auto":
            return torch.bfloat16 if self.on_cuda else torch.float32
        if wanted not in choices:
            raise ConfigError(f"model.dtype={wanted!r}; expected auto, bf16 or fp32")
        return choices[wanted]

    @cached_property
    def sizes(self) -> ModelSizes:
        """Sizes of the model, or the errors of `dct_vl.runs.model_sizes.model_sizes`."""
        return model_sizes(self.run.model.path)

    @property
    def lora(self) -> LoraConfig | None:
        return self.run.model.lora if self.run.model.tuning == "lora" else None

    def step_flops(self, sizes: ModelSizes | None = None) -> StepFlops:
        """The counter of a step's FLOPs; `sizes` are those of another model than the run's."""
        return step_flops(
            sizes or self.sizes,
            self.visual,
            trained=trained_parts(self.run.model),
            lora=self.lora,
        )
