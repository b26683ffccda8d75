"""Configurations of a Qwen2-VL and of a Qwen2.5-VL with a visual tokenizer of their own."""

from __future__ import annotations

from typing import Any

from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig


class DctVLConfig(Qwen2VLConfig):
    """Qwen2VLConfig and the tokenizer's flat mapping of keys.

    The model type is not Qwen2-VL's, so that nothing loads the folder as a stock model.
    """

    model_type = "qwen2_vl_dct"

    def __init__(self, visual_tokenizer: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.visual_tokenizer = visual_tokenizer


class DctVL25Config(Qwen2_5_VLConfig):
    """Qwen2_5_VLConfig and the tokenizer's flat mapping of keys; see `DctVLConfig`."""

    model_type = "qwen2_5_vl_dct"

    def __init__(self, visual_tokenizer: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.visual_tokenizer = visual_tokenizer
