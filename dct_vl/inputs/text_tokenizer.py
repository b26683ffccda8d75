"""The text tokenizer of a model's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from dct_vl.errors import ConfigError


def read_text_tokenizer(folder: str | Path) -> Any:
    """transformers' tokenizer of a Hugging Face folder.

    Raises:
        ConfigError: its files are missing or damaged.
    """
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # a damaged tokenizer.json is a bare Exception of its library
        raise ConfigError(
            f"the tokenizer of {folder} cannot be read ({error}): tokenizer.json and "
            "tokenizer_config.json are missing or damaged; fetch them again"
        ) from error
