"""The Lightning module: NeMo's, fed with cells, started from a Hugging Face folder."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state as ps
from nemo.collections.vlm.qwen2vl.model.base import Qwen2VLModel
from nemo.lightning.megatron_parallel import MaskedTokenLossReductionWithLossMask
from nemo.lightning.pytorch.optim import OptimizerModule
from nemo.utils import logging

from dct_vl.errors import ConfigError
from dct_vl.inputs.batch import Batch
from dct_vl.model.context_parallel import part_of_sequence, whole_sequence
from dct_vl.model.families.qwen_vl.model import QwenVLConfig
from dct_vl.model.families.qwen_vl.weights import load_hf_weights
from dct_vl.model.language_model import scored_forward
from dct_vl.model.lora import apply_lora
from dct_vl.model.parts import PARTS, LoraConfig, Part, freeze_parts
from dct_vl.training.watch.metering import StepMeter, WordMeter


def to_stage(batch: Batch) -> Batch:
    """What this pipeline stage needs of the batch, on its device.

    Does what `qwen2vl_data_step` of NeMo does, which drops fields that it does not know.
    """
    if not ps.is_pipeline_first_stage():
        batch = replace(batch, visual=None)
    if not ps.is_pipeline_last_stage():
        batch = replace(batch, labels=None, loss_mask=None, answer_indices=None)
    # out of pinned memory the copy does not wait for what the device is doing
    return batch.pin_memory().to("cuda", non_blocking=True)


def own_part(batch: Batch) -> Batch:
    """The batch with this context-parallel rank's part of what tokens have; the ids of tokens stay
    whole, as visual embeddings are put in their places before the sequence is divided.
    """
    assert batch.labels is not None
    assert batch.loss_mask is not None
    return replace(
        batch,
        labels=part_of_sequence(batch.labels, dim=1),
        loss_mask=part_of_sequence(batch.loss_mask, dim=1),
        position_ids=part_of_sequence(batch.position_ids, dim=2),
    )


def forward_step(model: QwenVLModule, batch: Batch) -> Any:
    """Run the model on a micro batch of `to_stage`."""
    if model.training:
        return model(batch)
    output, is_right = scored_forward(model, batch)
    if is_right is not None:
        # a word may begin in one rank's part and end in the next one's
        fields = (batch.labels, batch.loss_mask, is_right)
        model.words.add(*(whole_sequence(x, 1) for x in fields if x is not None))
    return output


class BatchLoss(MaskedTokenLossReductionWithLossMask):
    """NeMo's reduction, which would write the mask into the batch, for a typed batch."""

    def forward(self, batch: Batch, forward_out: Any) -> Any:
        return super().forward({}, forward_out)


class LossOfStep(BatchLoss):
    """NeMo's mean over the answer tokens of a step, without asking the device for each micro
    batch's number of them.

    Attributes:
        latest: what `reduce` returned last, still on the device; None on other pipeline stages.
        sums: (M, 2), of the same step: sum and number of answer tokens of each of this replica's
            micro batches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.latest: torch.Tensor | None = None
        self.sums: torch.Tensor | None = None

    def reduce(self, losses_reduced_per_micro_batch: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        """Mean loss over all micro batches and data-parallel ranks; 0 on other pipeline stages."""
        sums = [x["loss_sum_and_ub_size"] for x in losses_reduced_per_micro_batch]
        if not sums:
            return torch.tensor(0.0, device=torch.cuda.current_device())
        self.sums = torch.vstack(sums)
        if ps.get_context_parallel_world_size() > 1:
            torch.distributed.all_reduce(self.sums, group=ps.get_context_parallel_group())
        total = self.sums.sum(dim=0)
        torch.distributed.all_reduce(total, group=ps.get_data_parallel_group())
        self.latest = total[0] / total[1]
        return self.latest


class QwenVLModule(Qwen2VLModel):
    """NeMo's Qwen2VLModel around a `QwenVLWithVisualTokenizer`.

    Args:
        hf_folder: Hugging Face folder to start from; None where a checkpoint will be loaded.
        optim: NeMo's optimizer module.
        trained: parts whose own weights are trained.
        lora: adapters that are trained besides; None for none.
        seed: of the adapters' start and dropout.
        answer_loss: compute logits only for the tokens that carry loss, when training.
    """

    def __init__(
        self,
        config: QwenVLConfig,
        *,
        hf_folder: str | Path | None,
        optim: OptimizerModule | None = None,
        trained: Collection[Part] = PARTS,
        lora: LoraConfig | None = None,
        seed: int = 0,
        answer_loss: bool = False,
    ) -> None:
        config.forward_step_fn = forward_step
        vision = config.vision_transformer_config
        super().__init__(config, model_version=vision.model_version, optim=optim, tokenizer=None)
        #: side of the vision tower's windows; None where it has none
        self.window_side = vision.window_side
        self.hf_folder = Path(hf_folder) if hf_folder is not None else None
        self.trained = frozenset(trained)
        self.lora = lora
        self.seed = seed
        self.answer_loss = answer_loss
        #: seconds that the current step has waited for batches; the step log resets it
        self.data_wait = 0.0
        #: counts the training batches of the current step; the step log resets it
        self.meter = StepMeter()
        #: scores the words of validation batches; the step log resets it
        self.words = WordMeter()
        self._loss_of_step = LossOfStep()
        self._loss_of_validation = BatchLoss(validation_step=True)
        #: told what a step does next; `dct_vl.training.watch.rank_watch` sets it
        self.note_phase: Callable[[str], None] = lambda phase: None

    def configure_model(self, vp_stage: int | None = None) -> None:
        """Build this rank's stage and fill it, before NeMo wraps it and makes the optimizer."""
        if hasattr(self, "module"):
            return
        super().configure_model(vp_stage)
        if self.hf_folder is not None:
            used = load_hf_weights(self.module, self.hf_folder)
            logging.info(f"Read {len(used)} tensors of {self.hf_folder}")
        if self.lora is not None:
            apply_lora(self.module, self.lora, seed=self.seed)
        freeze_parts(self.module, self.trained)
        if ps.is_pipeline_first_stage() and not any(
            p.requires_grad for p in self.module.parameters()
        ):
            # its rank writes the optimizer's common state for all
            raise ConfigError(
                "the first pipeline stage has nothing to train: let adapters or parts of it be "
                "trained too (model.lora), or lower PP_SIZE"
            )

    def data_step(self, dataloader_iter: Iterator[Any]) -> Batch:
        """Next micro batch, counted, on this stage's device."""
        if self.training:
            self.note_phase("reads data")
        started = time.perf_counter()
        batch = next(dataloader_iter)
        if isinstance(batch, tuple):  # Lightning's (batch, batch_idx, dataloader_idx)
            batch = batch[0]
        if self.training:
            self.note_phase("computes")
            self.data_wait += time.perf_counter() - started
        batch = batch.with_windows(self.window_side)
        if self.training:
            self.meter.add(batch)
            self._seed_dropout()
        batch = own_part(batch)
        if self.training and self.answer_loss:
            batch = batch.with_answer_indices()
        return to_stage(batch)

    def _seed_dropout(self) -> None:
        """Let what adapters drop depend on the run's seed and the micro batch: NeMo's checkpoints
        hold no generator's state, and a resumed run would draw other numbers.

        Replicas and context-parallel ranks have other tokens, and drop others. Tensor-parallel
        ranks drop the same: they must where they hold an adapter's input in common.
        """
        micro_batch = (self.trainer.global_step, len(self.meter.micro_batches))
        stage = ps.get_pipeline_model_parallel_rank()
        replica = ps.get_data_parallel_rank(with_context_parallel=True)
        torch.manual_seed(zlib.crc32(f"{self.seed} {micro_batch} {stage} {replica}".encode()))

    @property
    def training_loss_reduction(self) -> LossOfStep:
        return self._loss_of_step

    @property
    def validation_loss_reduction(self) -> BatchLoss:
        return self._loss_of_validation

    def forward(self, batch: Batch) -> Any:  # type: ignore[override]
        return self.module(batch)
