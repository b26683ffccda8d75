"""Weights of a Hugging Face folder of Qwen2-VL or Qwen2.5-VL: read, and the recipes there and back.

Names and layouts follow transformers 4.51.3 (`Qwen2VLForConditionalGeneration`,
`Qwen2_5_VLForConditionalGeneration`) on one side and NeMo 2.7.3's importer
(`nemo/collections/vlm/qwen2vl/model/qwen2vl.py`) on the other. Megatron interleaves query, key and
value by query group and stacks the gated MLP's two halves. The two models differ in the vision
tower alone: a gated MLP and norms without biases tell the newer one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from dct_vl.model.families.qwen_vl.model import QwenVLWithVisualTokenizer
from dct_vl.model.weights import HFFolder, Recipe, load_folder

#: Megatron name of the front end's weight; a tokenizer fills it from the patch embedding
FRONT_END_PREFIX = "vision_model.front_end."
PATCH_EMBED = "visual.patch_embed.proj.weight"
WORD_EMBEDDINGS = "model.embed_tokens.weight"
#: absent where it is tied to the word embeddings
LM_HEAD = "lm_head.weight"

_LAYER = re.compile(r"^(?P<stack>.*decoder\.layers)\.(?P<index>\d+)\.(?P<rest>.*)$")


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Attention geometry of one stack, and the kind of its MLP."""

    num_heads: int
    num_groups: int
    head_dim: int
    #: gate and up in one matrix; all language models are gated, of the vision towers Qwen2.5-VL's
    gated: bool = False


def recipe(name: str, language: Heads, vision: Heads) -> Recipe:
    """Recipe for a full (unsharded) Megatron tensor such as
    `language_model.decoder.layers.3.mlp.linear_fc1.weight`.

    Raises:
        KeyError: no Hugging Face tensor corresponds to `name`.
    """
    fixed = _FIXED.get(name)
    if fixed is not None:
        return _renamed(fixed)
    match = _LAYER.match(name)
    if match is None:
        raise KeyError(f"no Hugging Face tensor is known for {name!r}")
    rest, index = match["rest"], match["index"]
    if match["stack"] == "language_model.decoder.layers":
        return _language_layer(f"model.layers.{index}.", rest, language)
    if match["stack"] == "vision_model.decoder.layers":
        return _vision_layer(f"visual.blocks.{index}.", rest, vision)
    raise KeyError(f"no Hugging Face tensor is known for {name!r}")


def every_source(language_layers: int, vision_layers: int, vision: Heads) -> set[str]:
    """Names of all tensors of a Hugging Face folder with so many layers, `lm_head` included."""
    names = {PATCH_EMBED, *_FIXED.values()}
    vision_rests: tuple[str, ...] = (*_VISION_LAYER, *_PLAIN_MLP, *_QKV)
    if vision.gated:
        names.remove(_FIXED[_LAST_NORM_BIAS])
        norms = {name for name in _VISION_LAYER if name.endswith("layer_norm_bias")}
        vision_rests = (*(_VISION_LAYER.keys() - norms), *_GATED_VISION_MLP, *_GATED, *_QKV)
    for stack, count, rests in (
        ("language_model", language_layers, (*_LANGUAGE_LAYER, _GATED[0], *_QKV)),
        ("vision_model", vision_layers, vision_rests),
    ):
        for index in range(count):
            for rest in rests:
                name = f"{stack}.decoder.layers.{index}.{rest}"
                names.update(recipe(name, vision, vision).sources)
    return names


_LAST_NORM_BIAS = "vision_model.decoder.final_layernorm.bias"
_FIXED = {
    "language_model.embedding.word_embeddings.weight": WORD_EMBEDDINGS,
    "language_model.decoder.final_layernorm.weight": "model.norm.weight",
    "language_model.output_layer.weight": LM_HEAD,
    "vision_model.decoder.final_layernorm.weight": "visual.merger.ln_q.weight",
    _LAST_NORM_BIAS: "visual.merger.ln_q.bias",
    "vision_projection.encoder.linear_fc1.weight": "visual.merger.mlp.0.weight",
    "vision_projection.encoder.linear_fc1.bias": "visual.merger.mlp.0.bias",
    "vision_projection.encoder.linear_fc2.weight": "visual.merger.mlp.2.weight",
    "vision_projection.encoder.linear_fc2.bias": "visual.merger.mlp.2.bias",
}

_LANGUAGE_LAYER = {
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}

_VISION_LAYER = {
    "self_attention.linear_proj.weight": "attn.proj.weight",
    "self_attention.linear_proj.bias": "attn.proj.bias",
    "self_attention.linear_qkv.layer_norm_weight": "norm1.weight",
    "self_attention.linear_qkv.layer_norm_bias": "norm1.bias",
    "mlp.linear_fc1.layer_norm_weight": "norm2.weight",
    "mlp.linear_fc1.layer_norm_bias": "norm2.bias",
}
_PLAIN_MLP = {
    "mlp.linear_fc1.weight": "mlp.fc1.weight",
    "mlp.linear_fc1.bias": "mlp.fc1.bias",
    "mlp.linear_fc2.weight": "mlp.fc2.weight",
    "mlp.linear_fc2.bias": "mlp.fc2.bias",
}
_GATED_VISION_MLP = {
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
    "mlp.linear_fc2.bias": "mlp.down_proj.bias",
}


#: in another layout, or made of several tensors
_QKV = ("self_attention.linear_qkv.weight", "self_attention.linear_qkv.bias")
_GATED = ("mlp.linear_fc1.weight", "mlp.linear_fc1.bias")


def _language_layer(prefix: str, rest: str, heads: Heads) -> Recipe:
    if rest in _LANGUAGE_LAYER:
        return _renamed(prefix + _LANGUAGE_LAYER[rest])
    if rest in _QKV:
        kind = rest.rpartition(".")[2]
        names = tuple(f"{prefix}self_attn.{x}_proj.{kind}" for x in "qkv")
        return Recipe(
            sources=names,
            join=lambda q, k, v: interleave_qkv(heads, q, k, v),
            split=lambda full: split_qkv(full, heads),
        )
    if rest == _GATED[0]:
        return _gated(prefix, "weight")
    raise KeyError(f"no Hugging Face tensor is known for {rest!r} of a language layer")


def _gated(prefix: str, kind: str) -> Recipe:
    return Recipe(
        sources=(f"{prefix}mlp.gate_proj.{kind}", f"{prefix}mlp.up_proj.{kind}"),
        join=lambda gate, up: torch.cat((gate, up)),
        split=lambda full: full.chunk(2),
    )


def _vision_layer(prefix: str, rest: str, heads: Heads) -> Recipe:
    if rest in _VISION_LAYER:
        return _renamed(prefix + _VISION_LAYER[rest])
    if heads.gated and rest in _GATED:
        return _gated(prefix, rest.rpartition(".")[2])
    mlp = _GATED_VISION_MLP if heads.gated else _PLAIN_MLP
    if rest in mlp:
        return _renamed(prefix + mlp[rest])
    if rest in _QKV:
        kind = rest.rpartition(".")[2]
        return Recipe(
            sources=(f"{prefix}attn.qkv.{kind}",),
            join=lambda qkv: interleave_qkv(heads, *qkv.unflatten(0, (3, -1))),
            split=lambda full: (torch.cat(split_qkv(full, heads)),),
        )
    raise KeyError(f"no Hugging Face tensor is known for {rest!r} of a vision layer")


def _renamed(source: str) -> Recipe:
    return Recipe(sources=(source,), join=lambda tensor: tensor, split=lambda full: (full,))


def interleave_qkv(heads: Heads, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Query, key and value projections → Megatron's layout.

    Args:
        q: (num_heads * head_dim, …).
        k, v: (num_groups * head_dim, …).

    Returns:
        ((num_heads + 2 num_groups) * head_dim, …): for each query group its queries, key, value.
    """
    tail = q.shape[1:]
    groups = heads.num_groups
    per_group = (groups, -1, heads.head_dim, *tail)
    joined = torch.cat((q.reshape(per_group), k.reshape(per_group), v.reshape(per_group)), dim=1)
    return joined.reshape(-1, *tail)


def split_qkv(full: torch.Tensor, heads: Heads) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Megatron's layout → query, key and value: the inverse of `interleave_qkv`.

    Args:
        full: ((num_heads + 2 num_groups) * head_dim, …).
    """
    tail = full.shape[1:]
    grouped = full.reshape(heads.num_groups, -1, *tail)
    sizes = (heads.num_heads // heads.num_groups * heads.head_dim, heads.head_dim, heads.head_dim)
    q, k, v = (part.reshape(-1, *tail) for part in grouped.split(sizes, dim=1))
    return q, k, v


def attention_geometry(module: QwenVLWithVisualTokenizer) -> tuple[Heads, Heads]:
    """Heads of the language model and of the vision tower, as `recipe` takes them."""
    language, vision = (
        Heads(
            num_heads=config.num_attention_heads,
            num_groups=config.num_query_groups,
            head_dim=config.kv_channels,
            gated=config.gated_linear_unit,
        )
        for config in (
            module.config.language_transformer_config,
            module.config.vision_transformer_config,
        )
    )
    return language, vision


def load_hf_weights(module: QwenVLWithVisualTokenizer, folder: str | Path) -> set[str]:
    """Fill this rank's stage from a folder; see `load_folder`."""
    heads, config = attention_geometry(module), module.config
    return load_folder(
        module,
        folder,
        recipe=lambda name: recipe(name, *heads),
        known=every_source(
            config.language_transformer_config.num_layers,
            config.vision_transformer_config.num_layers,
            heads[1],
        ),
        left_out=FRONT_END_PREFIX,
        fill_rest=lambda source: _fill_front_end(module, source) + _tied_faults(module, source),
    )


def _tied_faults(module: QwenVLWithVisualTokenizer, source: HFFolder) -> list[str]:
    """Some folders hold the tied matrix twice."""
    if not module.share_embeddings_and_output_weights or LM_HEAD not in source:
        return []
    if torch.equal(source.read(LM_HEAD), source.read(WORD_EMBEDDINGS)):
        return []
    return [
        f"{LM_HEAD} differs from {WORD_EMBEDDINGS}, and config.json ties them: set "
        "tie_word_embeddings to false there, or remove the tensor"
    ]


def _fill_front_end(module: QwenVLWithVisualTokenizer, source: HFFolder) -> list[str]:
    if module.vision_model is None:
        return []
    if PATCH_EMBED not in source:
        return [f"{PATCH_EMBED} is missing (needed for the tokenizer's front end)"]
    try:
        module.vision_model.front_end.load_pretrained(source.read(PATCH_EMBED))
    except ValueError as error:
        return [f"{PATCH_EMBED}: {error}"]
    return []
