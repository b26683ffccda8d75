"""Energon task encoders, a sample or a pack a row: crude samples → planned → encoded → batches."""

from __future__ import annotations

from typing import Any, NoReturn

from megatron.energon import DefaultTaskEncoder, Sample, SkipSample, stateless
from megatron.energon.edataclass import edataclass

from data_prep.schema import SchemaError
from data_prep.video_file import VideoError
from dct_tokenizer import PlanError, TokenizerConfigError
from dct_tokenizer.upright import ImageError
from dct_vl.inputs.batch import Batch, pack_batch, pad_batch
from dct_vl.inputs.chat import ChatError
from dct_vl.inputs.clips import make_clip
from dct_vl.inputs.data_sets import COOKERS
from dct_vl.inputs.encode import InputSpec, encode_chat, plan_chat
from dct_vl.inputs.rejects import RejectLog, file_of
from dct_vl.inputs.samples import (
    CrudeChat,
    EncodedChat,
    PlannedChat,
    Stage,
    read_record,
    reason_of,
)
from dct_vl.training.data.loader_processes import WorkerBoard
from dct_vl.training.data.packing import ChatPack, PackBounds, select_packs

#: of a sample, not of the program
_FAULTS = (SchemaError, ChatError, ImageError, VideoError, PlanError, TokenizerConfigError)


class ChatTaskEncoder(DefaultTaskEncoder[CrudeChat, EncodedChat, Batch, Batch]):
    """Conversations with images and videos, one sample a batch row.

    Args:
        inputs: how conversations become inputs. What is longer than its `seq_length` even with
            fewer frames of its videos is rejected, never cut.
        pad_to: every batch is padded to this length; None pads to the batch's longest sample,
            rounded up to `pad_multiple`.
        pad_multiple: divisor of the batch length (sequence parallelism needs the TP size).
        rejects: where left-out samples go.
    """

    cookers = COOKERS
    #: crude samples stay undecoded
    decoder = None
    #: failures in a row are counted by the rejects alone, which say where they lie
    __default_failure_tolerance__ = 0

    def __init__(
        self,
        *,
        inputs: InputSpec,
        rejects: RejectLog,
        pad_to: int | None = None,
        pad_multiple: int = 8,
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.rejects = rejects
        self.pad_to = pad_to
        self.pad_multiple = pad_multiple
        #: where this process notes the sample that it is at; the data module hangs it up
        self.board: WorkerBoard | None = None

    @stateless
    def preencode_sample(self, sample: CrudeChat) -> PlannedChat:
        """Plan a sample from its text and the headers of its images; nothing is decoded."""
        if self.board:
            self.board.note(f"planning {sample.__key__}")
        try:
            turns = read_record(sample).turns
            planned = plan_chat(self.inputs, sample, turns, sample.images, sample.videos)
        except _FAULTS as error:
            self._reject(sample, reason_of(error), str(error))
        length, limit = len(planned.input_ids), self.inputs.seq_length
        if length > limit:
            self._reject(
                sample,
                "too_long",
                f"{length} tokens, {sum(p.num_llm_tokens for p in planned.plans)} of them visual; "
                f"data.seq_length is {limit}",
            )
        if not planned.is_answer[1:].any():
            self._reject(sample, "no_answer", "no token is left to predict")
        self.rejects.accept("planning")
        taken = [clip.num_frames for clip in planned.clips]
        wanted = [make_clip(clip.header, self.inputs.video).num_frames for clip in planned.clips]
        if taken != wanted:
            detail = f"{taken} of {wanted} frames; data.seq_length is {limit}"
            self.rejects.note(sample.__key__, "video_shortened", detail, file=file_of(sample))
        return planned

    @stateless
    def postencode_sample(self, sample: PlannedChat) -> EncodedChat:
        if self.board:
            self.board.note(f"decoding {sample.__key__}")
        try:
            encoded = encode_chat(self.inputs, sample)
        except ValueError as error:
            # pixels that contradict their header, for instance
            self._reject(sample, reason_of(error), str(error), "decoding")
        for detail in encoded.damage:
            self.rejects.note(sample.__key__, "video_damaged", detail, file=file_of(sample))
        self.rejects.accept("decoding")
        return encoded

    @stateless
    def batch(self, samples: list[EncodedChat]) -> Batch:
        batch = pad_batch(
            samples, visual=self.inputs.visual, pad_to=self.pad_to, pad_multiple=self.pad_multiple
        )
        self.rejects.accept("batching")
        return batch

    def _reject(
        self, sample: Sample, reason: str, detail: str, stage: Stage = "planning"
    ) -> NoReturn:
        self.rejects.reject(sample.__key__, reason, detail, stage=stage, file=file_of(sample))


@edataclass
class CountedChat(PlannedChat):
    """A planned sample with the numbers that it takes of a pack."""

    num_tokens: int
    num_patches: int


class ChatPackEncoder(ChatTaskEncoder):
    """Conversations in packs of `inputs.seq_length` tokens; a batch is made of packs.

    Energon fills a buffer of planned samples, asks for packs, decodes the samples of one pack at a
    time and saves its place with whatever the buffer holds.

    Packs are made by plan. Where the numbers of a tokenizer are known only after decoding
    (`counts_from_header` is False) a sample is decoded for its numbers before it is packed and
    again when its pack is due: packing by the bounds of the plan would leave much of every row
    empty, and keeping pixels in the buffer would take gigabytes.

    A sample that turns out to be damaged after its pack was chosen leaves padding behind.

    Args:
        max_patches: most ViT patches in a pack; a sample with more is rejected.
        options: of `ChatTaskEncoder`; padding does not apply.
    """

    def __init__(self, *, max_patches: int, **options: Any) -> None:
        super().__init__(**options)
        self.bounds = PackBounds(max_tokens=self.inputs.seq_length, max_patches=max_patches)

    @stateless
    def preencode_sample(self, sample: CrudeChat) -> CountedChat:
        planned = super().preencode_sample(sample)
        num_tokens = len(planned.input_ids)
        num_patches = sum(plan.num_cells for plan in planned.plans)
        if not self.inputs.visual.counts_from_header:
            encoded = self.postencode_sample(planned)
            num_tokens = len(encoded.input_ids)
            num_patches = sum(plan.num_cells for plan in encoded.visual.plans)
        if num_patches > self.bounds.max_patches:
            self._reject(
                sample,
                "too_many_patches",
                f"{num_patches} ViT patches; a pack holds {self.bounds.max_patches} "
                "(data.max_patches_per_pack)",
                "packing",
            )
        self.rejects.accept("packing")
        return CountedChat.extend(planned, num_tokens=num_tokens, num_patches=num_patches)

    def select_samples_to_pack(self, samples: list[CountedChat]) -> list[list[CountedChat]]:
        """Divide a buffer into packs; see `dct_vl.training.data.packing.select_packs`."""
        tokens = [sample.num_tokens for sample in samples]
        patches = [sample.num_patches for sample in samples]
        packs = select_packs(tokens, patches, self.bounds)
        return [[samples[index] for index in pack] for pack in packs]

    @stateless
    def pack_selected_samples(self, samples: list[EncodedChat]) -> ChatPack:
        """A pack of the samples that came through decoding; SkipSample where none did."""
        if not samples:
            raise SkipSample("all samples of a pack were rejected")
        return ChatPack.derive_from(samples[0], samples=tuple(samples))

    @stateless
    def batch(self, samples: list[ChatPack]) -> Batch:  # type: ignore[override]
        packs = [pack.samples for pack in samples]
        batch = pack_batch(packs, visual=self.inputs.visual, length=self.inputs.seq_length)
        self.rejects.accept("batching")
        return batch
