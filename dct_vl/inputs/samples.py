"""What flows through the task encoder, stage by stage.

Shape legend: L tokens of the sample.
"""

from __future__ import annotations

import numpy as np
from megatron.energon import Sample
from megatron.energon.edataclass import edataclass

from dct_tokenizer import Plan
from dct_vl.inputs.chat import TokenizedChat
from dct_vl.inputs.clips import Clip
from dct_vl.inputs.pictures import PictureCells


@edataclass
class CrudeChat(Sample):
    """A sample as it lies in the shard."""

    #: bytes of the JSON
    record: bytes
    #: encoded pictures in the order of the conversation
    images: tuple[bytes, ...]
    #: encoded videos, likewise
    videos: tuple[bytes, ...] = ()
    #: what is wrong with the sample's parts; "" where they follow the schema
    fault: str = ""


@edataclass
class PlannedChat(Sample):
    """A sample whose exact length is known and whose pictures are still encoded bytes."""

    #: each picture or video still one placeholder
    chat: TokenizedChat
    #: (L,) int64 with VISUAL_TOKEN_INDEX at visual tokens
    input_ids: np.ndarray
    #: (L,) bool, True where the token is to be predicted
    is_answer: np.ndarray
    #: (3, L) int64 M-RoPE ids
    position_ids: np.ndarray
    #: of pictures and videos, in the order of the conversation
    plans: tuple[Plan, ...]
    images: tuple[bytes, ...]
    videos: tuple[bytes, ...]
    #: how much is taken of each video
    clips: tuple[Clip, ...]


@edataclass
class EncodedChat(Sample):
    """A sample with its pictures as cells."""

    #: (L,) int64 with VISUAL_TOKEN_INDEX at visual tokens
    input_ids: np.ndarray
    #: (L,) bool
    is_answer: np.ndarray
    #: (3, L) int64
    position_ids: np.ndarray
    pictures: PictureCells
    #: what is wrong with videos of which only a part is used
    damage: tuple[str, ...] = ()
