"""LoRA's adapters as a PEFT folder, for a base model that stays as it is.

Megatron has one adapter a layer where transformers has several linear layers (query, key and
value; gate and up): they share the first matrix, and the second is split like the layer's weight.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from nemo.collections.llm.peft.lora import LoRALinear
from safetensors.torch import save_file

from dct_tokenizer import VisualTokenizer
from dct_vl.export.tensors import ExportError, as_written, folded_patch_embed, why_not_plain
from dct_vl.model.families.qwen_vl.model import QwenVLWithVisualTokenizer
from dct_vl.model.families.qwen_vl.weights import PATCH_EMBED, attention_geometry, recipe
from dct_vl.model.parts import Part

#: how PEFT names the modules of the base model
_PREFIX = "base_model.model."
_PROJECTOR = ("vision_projection.encoder.linear_fc1", "vision_projection.encoder.linear_fc2")


def export_adapter(
    module: QwenVLWithVisualTokenizer,
    visual: VisualTokenizer,
    base: str | Path,
    out: str | Path,
    *,
    trained: frozenset[Part],
    dtype: torch.dtype,
) -> int:
    """Write adapter_config.json and adapter_model.safetensors into an existing folder.

    Args:
        module: a whole model with its adapters.
        visual: its tokenizer; front ends other than a stock patch embedding have no base model.
        base: the Hugging Face folder that the run started from, named in the configuration.
        trained: parts that were trained in full beside the adapters; they are written whole.

    Returns:
        Bytes of the tensors.

    Raises:
        ExportError: no adapters, a tokenizer without a plain base model, or too much trained.
    """
    reason = why_not_plain(visual)
    if reason is not None:
        raise ExportError(f"an adapter needs a stock base model, and {visual.name}: {reason}")
    if trained - {"front_end", "projector"}:
        raise ExportError(
            f"{', '.join(sorted(trained))} were trained in full: write the merged model instead"
        )
    layers = {n: m for n, m in module.named_modules() if isinstance(m, LoRALinear)}
    if not layers:
        raise ExportError("the model has no adapters: write the model instead")
    tensors: dict[str, torch.Tensor] = {}
    targets: list[str] = []
    for name, layer in layers.items():
        how = recipe(f"{name}.weight", *attention_geometry(module))
        first, second = layer.adapter.linear_in.weight, layer.adapter.linear_out.weight
        for source, part in zip(how.sources, how.split(second), strict=True):
            target = source.removesuffix(".weight")
            targets.append(target)
            tensors[f"{_PREFIX}{target}.lora_A.weight"] = as_written(first, dtype)
            tensors[f"{_PREFIX}{target}.lora_B.weight"] = as_written(part, dtype)
    whole = _trained_in_full(module, trained, dtype)
    tensors |= {f"{_PREFIX}{name}": tensor for name, tensor in whole.items()}
    adapter = next(iter(layers.values())).adapter
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": Path(base).name,
        "r": adapter.dim,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(targets),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in whole}) or None,
    }
    out = Path(out)
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    (out / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return sum(tensor.nbytes for tensor in tensors.values())


def _trained_in_full(
    module: QwenVLWithVisualTokenizer, trained: frozenset[Part], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    whole: dict[str, torch.Tensor] = {}
    if "front_end" in trained:
        whole[PATCH_EMBED] = folded_patch_embed(module.vision_model.front_end, dtype).make()[0]
    if "projector" in trained:
        state = module.state_dict()
        for layer in _PROJECTOR:
            for kind in ("weight", "bias"):
                how = recipe(f"{layer}.{kind}", *attention_geometry(module))
                whole[how.sources[0]] = as_written(state[f"{layer}.{kind}"], dtype)
    return whole
