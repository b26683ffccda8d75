"""Samples, stage by stage: crude as they lie in their shard, planned, encoded; and their faults.

Shape legend: L tokens of the sample.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from megatron.energon import Sample, basic_sample_keys, stateless
from megatron.energon.edataclass import edataclass

from data_prep.schema import (
    ChatRecord,
    SchemaError,
    check_all_there,
    parse_record,
    sample_parts,
)
from data_prep.video_file import VideoError
from dct_tokenizer import Plan
from dct_tokenizer.upright import ImageError
from dct_vl.inputs.cells import VisualCells
from dct_vl.inputs.chat import ChatError, TokenizedChat
from dct_vl.inputs.clips import Clip

#: what befalls a sample, in this order; a run of rejections is one of the same stage
Stage = Literal["reading", "cooking", "planning", "packing", "decoding", "batching"]


@edataclass
class CrudeChat(Sample):
    """A sample as it lies in the shard."""

    #: bytes of the JSON
    record: bytes
    #: encoded images in the order of the conversation
    images: tuple[bytes, ...]
    #: encoded videos, likewise
    videos: tuple[bytes, ...] = ()
    #: what is wrong with the sample's parts; "" where they follow the schema
    fault: str = ""


@edataclass
class PlannedChat(Sample):
    """A sample whose exact length is known and whose images are still encoded bytes."""

    #: each image or video still one placeholder
    chat: TokenizedChat
    #: (L,) int64 with VISUAL_TOKEN_INDEX at visual tokens
    input_ids: np.ndarray
    #: (L,) bool, True where the token is to be predicted
    is_answer: np.ndarray
    #: (3, L) int64 M-RoPE ids
    position_ids: np.ndarray
    #: of images and videos, in the order of the conversation
    plans: tuple[Plan, ...]
    images: tuple[bytes, ...]
    videos: tuple[bytes, ...]
    #: how much is taken of each video
    clips: tuple[Clip, ...]


@edataclass
class EncodedChat(Sample):
    """A sample with its images and videos as cells."""

    #: (L,) int64 with VISUAL_TOKEN_INDEX at visual tokens
    input_ids: np.ndarray
    #: (L,) bool
    is_answer: np.ndarray
    #: (3, L) int64
    position_ids: np.ndarray
    visual: VisualCells
    #: what is wrong with videos of which only a part is used
    damage: tuple[str, ...] = ()


class DamagedSample(ValueError):
    """A sample that its shard does not give back: a header is damaged, or the file ends early."""

    def __init__(self, detail: str, file: str) -> None:
        super().__init__(detail)
        #: the shard
        self.file = file


@stateless
def cook_chat(sample: dict[str, Any]) -> CrudeChat:
    """Pick the parts of a WebDataset sample; bytes stay bytes.

    A fault in the parts goes along to where rejections are recorded: what is raised here, Energon
    would print and forget.
    """
    try:
        parts = sample_parts(sample, sample.__getitem__)
    except SchemaError as error:
        return CrudeChat(**basic_sample_keys(sample), record=b"", images=(), fault=str(error))
    return CrudeChat(
        **basic_sample_keys(sample),
        record=sample[parts.json],
        images=tuple(sample[part] for part in parts.images),
        videos=tuple(sample[part] for part in parts.videos),
    )


def read_record(sample: CrudeChat) -> ChatRecord:
    """The parsed JSON of a sample whose parts are all there.

    Raises:
        SchemaError: the JSON or the parts do not follow the schema.
    """
    if sample.fault:
        raise SchemaError(sample.fault)
    record = parse_record(sample.record)
    check_all_there(record, len(sample.images), len(sample.videos))
    return record


def reason_of(error: Exception) -> str:
    """The word under which a sample or a question with this error is counted."""
    if isinstance(error, ChatError):
        return error.reason
    reasons: dict[type[Exception], str] = {
        DamagedSample: "damaged_shard",
        SchemaError: "schema",
        ImageError: "undecodable",
        VideoError: "undecodable",
        OSError: "unreadable",
    }
    return next((word for kind, word in reasons.items() if isinstance(error, kind)), "unplannable")
