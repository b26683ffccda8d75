"""Random weights for a configuration, without the slow default initialisation."""

from __future__ import annotations

import torch
from transformers import AutoModelForImageTextToText
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLForConditionalGeneration

from dct_vl.model.random_model.shapes import AnyConfig


def random_model(
    config: AnyConfig, *, seed: int, dtype: torch.dtype
) -> Qwen2VLForConditionalGeneration | Qwen2_5_VLForConditionalGeneration:
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
