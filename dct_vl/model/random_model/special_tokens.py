"""Qwen2-VL's special tokens, in the order of their ids."""

from __future__ import annotations

#: On the hub these are the ids 151643 … 151656; elsewhere they follow the BPE vocabulary at once.
SPECIAL_TOKENS: tuple[str, ...] = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
#: Id of <|endoftext|> in the hub's Qwen2-VL tokenizers, hence the size of their BPE vocabulary.
FIRST_SPECIAL_ID_2B = 151643

END_OF_TEXT, END_OF_TURN = "<|endoftext|>", "<|im_end|>"
SYSTEM_PROMPT = "You are a helpful assistant."
