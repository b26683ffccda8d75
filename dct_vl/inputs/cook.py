"""A sample as it lies in its shard: its parts, its record, and what can be wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from megatron.energon import basic_sample_keys, stateless

from data_prep.schema import (
    ChatRecord,
    SchemaError,
    image_parts,
    json_part,
    parse_record,
    video_parts,
)
from dct_vl.inputs.chat import ChatError
from dct_vl.inputs.images import ImageError
from dct_vl.inputs.samples import CrudeChat
from dct_vl.inputs.video import VideoError

#: what befalls a sample, in this order; a run of rejections is one of the same stage
Stage = Literal["reading", "planning", "packing", "decoding"]


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
        record = sample[json_part(sample)]
        images = tuple(sample[part] for part in image_parts(sample))
        videos = tuple(sample[part] for part in video_parts(sample))
    except SchemaError as error:
        return CrudeChat(**basic_sample_keys(sample), record=b"", images=(), fault=str(error))
    return CrudeChat(**basic_sample_keys(sample), record=record, images=images, videos=videos)


def read_record(sample: CrudeChat) -> ChatRecord:
    """The parsed JSON of a sample whose parts are all there.

    Raises:
        SchemaError: the JSON or the parts do not follow the schema.
    """
    if sample.fault:
        raise SchemaError(sample.fault)
    record = parse_record(sample.record)
    _check_presence("image", record.images, sample.images)
    _check_presence("video", record.videos, sample.videos)
    return record


def _check_presence(kind: str, named: Sequence[str], held: Sequence[bytes]) -> None:
    """An image that is missing would leave a question about nothing, where no mark counts it."""
    wanted = sum(map(bool, named))
    if len(held) < wanted:
        raise SchemaError(
            f"the JSON names {wanted} {kind}s, the sample holds {len(held)}: a part is missing, or "
            "its extension is none of those that data_prep/schema.py knows"
        )


def reason_of(error: Exception) -> str:
    """The word under which a sample or a question with this error is counted."""
    if isinstance(error, DamagedSample):
        return "damaged_shard"
    if isinstance(error, SchemaError):
        return "schema"
    if isinstance(error, ChatError):
        return error.reason
    if isinstance(error, ImageError | VideoError):
        return "undecodable"
    if isinstance(error, OSError):
        return "unreadable"
    return "unplannable"
