"""The task encoder of packed training: many samples a row."""

from __future__ import annotations

from typing import Any

from megatron.energon import SkipSample, stateless
from megatron.energon.edataclass import edataclass

from dct_vl.inputs.batch import Batch, pack_batch
from dct_vl.inputs.samples import CrudeChat, EncodedChat, PlannedChat
from dct_vl.training.data.packing import ChatPack, PackBounds, select_packs
from dct_vl.training.data.task_encoder import ChatTaskEncoder


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
        """Plan a sample and count what it takes of a pack."""
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
        """A pack of the samples that came through decoding.

        Raises:
            SkipSample: none did.
        """
        if not samples:
            raise SkipSample("all samples of a pack were rejected")
        return ChatPack.derive_from(samples[0], samples=tuple(samples))

    @stateless
    def batch(self, samples: list[ChatPack]) -> Batch:  # type: ignore[override]
        """Lay packs into rows."""
        packs = [pack.samples for pack in samples]
        return pack_batch(packs, visual=self.inputs.visual, length=self.inputs.seq_length)
