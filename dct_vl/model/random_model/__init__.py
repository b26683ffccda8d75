"""Qwen2-VL and Qwen2.5-VL folders with random weights, for what must run without a download."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from dct_vl.model.random_model.shapes import (
    MERGE_SIZE,
    PATCH_SIZE,
    SMALL,
    TEMPORAL_PATCH_SIZE,
    TINY_25,
    AnyConfig,
    TinyShape,
    config_2b,
    config_3b_25,
    tiny_config,
)
from dct_vl.model.random_model.tokenizer import FIRST_SPECIAL_ID_2B, train_tokenizer

__all__ = ["TinyShape", "write_random_model"]

ShapeName: TypeAlias = Literal["tiny", "small", "2b", "tiny25", "3b25"]
_SIZES: dict[str, TinyShape] = {"tiny": TinyShape(), "small": SMALL, "tiny25": TINY_25}
_FROM_THE_HUB: dict[str, Callable[[], AnyConfig]] = {"2b": config_2b, "3b25": config_3b_25}
#: The hub's bounds on the pixels of a resized image.
MIN_PIXELS, MAX_PIXELS = 3136, 12845056
MAX_SHARD_SIZE = "2GB"
MAX_BPE_SIZE_2B = 8192


def write_random_model(
    folder: str | Path,
    *,
    corpus: Iterable[str],
    shape: ShapeName | TinyShape = "tiny",
    seed: int = 0,
    dtype: torch.dtype | None = None,
    weights: bool = True,
) -> Path:
    """Write what the hub's folder holds: config, safetensors, a Qwen2 tokenizer trained on the
    corpus, processor and chat template; return the folder.

    corpus: texts that the tokenizer is trained on; its words become one token each.
    shape: "tiny" is ``TinyShape()``, "small" has 25 million parameters, "tiny25" is a tiny
        Qwen2.5-VL; "2b" and "3b25" have the sizes and the special ids of the hub's Qwen2-VL-2B
        and Qwen2.5-VL-3B (4.4 and 7.5 GB in bfloat16, in shards of 2 GB).
    dtype: of the weights; float32 for a tiny shape and bfloat16 for the hub's unless given.
    weights: False leaves them out, for what draws its own.

    Plain transformers 4.51.3 loads it: AutoTokenizer, AutoProcessor, AutoModelForImageTextToText.
    Raises ValueError for an unknown shape.
    """
    folder = Path(folder)
    if isinstance(shape, str) and shape not in get_args(ShapeName):
        names = ", ".join(get_args(ShapeName))
        raise ValueError(f"shape is {shape!r}, expected one of {names}, or a TinyShape")
    if isinstance(shape, str) and shape in _FROM_THE_HUB:
        tokenizer = train_tokenizer(
            corpus, max_bpe_size=MAX_BPE_SIZE_2B, first_special_id=FIRST_SPECIAL_ID_2B
        )
        config: AnyConfig = _FROM_THE_HUB[shape]()
        dtype = dtype or torch.bfloat16
    else:
        sizes = shape if isinstance(shape, TinyShape) else _SIZES[shape]
        tokenizer = train_tokenizer(corpus, max_bpe_size=sizes.max_bpe_size)
        config = tiny_config(sizes, first_special_id=tokenizer.vocab_size)
        dtype = dtype or torch.float32
    generation = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=[config.eos_token_id, config.bos_token_id],
        pad_token_id=config.bos_token_id,
        do_sample=False,
    )
    if weights:
        model = _random_model(config, seed=seed, dtype=dtype)
        model.generation_config = generation
        model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
    else:
        config.torch_dtype = dtype
        config.architectures = [AutoModelForImageTextToText._model_mapping[type(config)].__name__]
        config.save_pretrained(folder)
        generation.save_pretrained(folder)
    image_processor = Qwen2VLImageProcessor(
        min_pixels=MIN_PIXELS,
        max_pixels=MAX_PIXELS,
        patch_size=PATCH_SIZE,
        temporal_patch_size=TEMPORAL_PATCH_SIZE,
        merge_size=MERGE_SIZE,
    )
    is_25 = config.model_type == "qwen2_5_vl"
    processor = Qwen2_5_VLProcessor if is_25 else Qwen2VLProcessor
    processor(image_processor, tokenizer, chat_template=tokenizer.chat_template).save_pretrained(
        folder
    )
    return folder


def _random_model(config: AnyConfig, *, seed: int, dtype: torch.dtype) -> Any:
    """Norm weights 1, biases 0, all matrices normal with the configuration's initializer_range.

    The values depend on ``seed``, the shapes and ``dtype``. Buffers that are not saved (rotary
    frequencies) stay uninitialised: the model is for ``save_pretrained``, not for a forward pass.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, torch_dtype=dtype)
    model.to_empty(device="cpu")
    model.tie_weights()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if name.endswith(".bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, config.initializer_range, generator=generator)
    return model
