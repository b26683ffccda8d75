"""Place planned pictures and videos into a tokenised conversation: ids, mask, M-RoPE positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dct_tokenizer import Plan
from dct_vl.inputs.chat import TokenizedChat

#: see `dct_vl.model.families.qwen_vl.model`; repeated here so that loader processes need not
#: import Megatron's model code (a test holds them equal)
VISUAL_TOKEN_INDEX = -200


def place_media(
    chat: TokenizedChat, pad_ids: Sequence[int], plans: Sequence[Plan]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Expand every placeholder to the visual tokens of its picture or video.

    Positions follow Qwen2-VL: text counts up in all three rows; a picture's ids start where the
    text stopped and the text goes on after the largest of them (`get_rope_index` in
    transformers 4.51.3). A video's are those of one picture with several temporal ids, which count
    pairs of frames, and in Qwen2.5-VL parts of a second.

    Args:
        chat: ids with one placeholder a picture or video.
        pad_ids: the placeholders.
        plans: one a picture or video, in order.

    Returns:
        input_ids (L,) int64, is_answer (L,) bool, position_ids (3, L) int64.

    Raises:
        ValueError: placeholders and plans differ in number.
    """
    ids = np.asarray(chat.input_ids, dtype=np.int64)
    answer = np.asarray(chat.is_answer, dtype=bool)
    # np.isin takes ten times as long on a few ids
    places = np.flatnonzero((ids[:, None] == np.asarray(pad_ids)).any(axis=1))
    if len(places) != len(plans):
        raise ValueError(f"{len(places)} placeholders for {len(plans)} planned images and videos")
    out_ids: list[np.ndarray] = []
    out_answer: list[np.ndarray] = []
    out_positions: list[np.ndarray] = []
    start = next_position = 0

    def add_text(stop: int) -> None:
        nonlocal next_position
        length = stop - start
        out_ids.append(ids[start:stop])
        out_answer.append(answer[start:stop])
        run = np.arange(next_position, next_position + length, dtype=np.int64)
        out_positions.append(np.broadcast_to(run, (3, length)))
        next_position += length

    for place, plan in zip(places.tolist(), plans, strict=True):
        add_text(place)
        out_ids.append(np.full(plan.num_llm_tokens, VISUAL_TOKEN_INDEX, dtype=np.int64))
        out_answer.append(np.zeros(plan.num_llm_tokens, dtype=bool))
        positions, extent = plan.placed_ids()
        out_positions.append(positions.T + next_position)
        next_position += extent
        start = place + 1
    add_text(len(ids))
    return (
        np.concatenate(out_ids),
        np.concatenate(out_answer),
        np.concatenate(out_positions, axis=1),
    )
