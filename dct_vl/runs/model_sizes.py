"""Sizes of a Qwen2-VL or Qwen2.5-VL, from its folder or by name, and its parameters by part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dct_tokenizer.cost import MODELS, ModelShape
from dct_tokenizer.geometry import MERGE
from dct_vl.errors import ConfigError
from dct_vl.model.families.qwen_vl.config import read_hf_config, vision_sizes
from dct_vl.model.parts import LoraConfig, adapted_linears

#: name → vocabulary, and whether embedding and output layer share their weights; config.json of
#: https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct and the others of `dct_tokenizer.cost`
_WORDS = {
    "2b": (151936, True),
    "7b": (152064, False),
    "3b25": (151936, True),
    "7b25": (152064, False),
}
#: how the names of the hub's folders begin → name
_HUB_NAMES = {
    "qwen2-vl-2b": "2b",
    "qwen2-vl-7b": "7b",
    "qwen2.5-vl-3b": "3b25",
    "qwen2.5-vl-7b": "7b25",
}


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Everything that memory and FLOPs follow from."""

    name: str
    shape: ModelShape
    vocab_size: int
    #: embedding and output layer are one matrix
    tied: bool

    @property
    def query_width(self) -> int:
        return self.shape.heads * self.shape.head_dim

    @property
    def key_width(self) -> int:
        return self.shape.kv_heads * self.shape.head_dim

    def vit_linears(self) -> dict[str, tuple[int, int]]:
        """Name → (inputs, outputs) of the matrices of a ViT layer."""
        width, mlp = self.shape.vit_width, self.shape.vit_mlp
        return {
            "linear_qkv": (width, 3 * width),
            "linear_proj": (width, width),
            "linear_fc1": (width, 2 * mlp if self.shape.vit_gated else mlp),
            "linear_fc2": (mlp, width),
        }

    def llm_linears(self) -> dict[str, tuple[int, int]]:
        """Name → (inputs, outputs) of the matrices of a layer of the language model."""
        width, mlp = self.shape.llm_width, self.shape.llm_mlp
        return {
            "linear_qkv": (width, self.query_width + 2 * self.key_width),
            "linear_proj": (self.query_width, width),
            "linear_fc1": (width, 2 * mlp),
            "linear_fc2": (mlp, width),
        }

    @property
    def vit_layer(self) -> int:
        """Parameters of a ViT layer: four matrices with biases, two norms."""
        linears = self.vit_linears().values()
        return sum(i * o + o for i, o in linears) + 2 * self.vit_norm

    @property
    def vit_norm(self) -> int:
        """Parameters of a norm of the ViT: an RMS norm where the MLP is gated, or a layer norm."""
        return self.shape.vit_width if self.shape.vit_gated else 2 * self.shape.vit_width

    @property
    def llm_layer(self) -> int:
        """Parameters of a layer of the language model: four matrices, the bias of the first, two
        RMS norms.
        """
        matrices = sum(i * o for i, o in self.llm_linears().values())
        return matrices + self.query_width + 2 * self.key_width + 2 * self.shape.llm_width

    @property
    def projector(self) -> int:
        """Parameters of the merger: a norm, two matrices with biases."""
        merged, width = MERGE * MERGE * self.shape.vit_width, self.shape.llm_width
        return self.vit_norm + merged * merged + merged + merged * width + width

    @property
    def words(self) -> int:
        """Parameters of the embedding, and of the output layer likewise."""
        return self.vocab_size * self.shape.llm_width

    def adapters(self, lora: LoraConfig) -> tuple[float, float]:
        """Parameters of the adapters of a ViT layer and of a layer of the language model, on
        average over the layers.
        """

        def count(tower: str, layers: int, linears: dict[str, tuple[int, int]]) -> float:
            chosen = adapted_linears(lora, tower, layers)
            return sum(lora.rank * sum(linears[name]) * n / layers for name, n in chosen.items())

        return (
            count("vision_model", self.shape.vit_layers, self.vit_linears()),
            count("language_model", self.shape.llm_layers, self.llm_linears()),
        )

    def adapted_fc2(self, lora: LoraConfig) -> tuple[float, float]:
        """Share of the ViT's layers, and of the language model's, whose MLP has an adapter at its
        second product.
        """
        layers = {"vision_model": self.shape.vit_layers, "language_model": self.shape.llm_layers}
        vit, llm = (adapted_linears(lora, t, n)["linear_fc2"] / n for t, n in layers.items())
        return vit, llm


def model_sizes(where: str) -> ModelSizes:
    """Sizes by the name of a shape (2b, 7b, 3b25, 7b25), by a Hugging Face folder, or, where that
    folder is not there, by the hub's name at its end (Qwen2-VL-2B-Instruct).

    Raises:
        ConfigError: nothing of that name, or a model that training does not support.
    """
    path = Path(where)
    config = path / "config.json"
    if config.is_file():
        return _of_folder(config)
    name = path.name.lower()
    known = name if name in _WORDS else None
    for start, shape_name in _HUB_NAMES.items():
        known = shape_name if name.startswith(start) else known
    if known is not None:
        vocab_size, tied = _WORDS[known]
        return ModelSizes(name=known, shape=MODELS[known], vocab_size=vocab_size, tied=tied)
    raise ConfigError(
        f"no sizes for the model {where!r}: it is no folder with a config.json; expected one, or "
        f"one of the shapes {', '.join(_WORDS)}"
    )


def _of_folder(path: Path) -> ModelSizes:
    hf = read_hf_config(path.parent)
    vision = vision_sizes(hf)
    shape = ModelShape(
        vit_layers=vision.layers,
        vit_width=vision.width,
        vit_mlp=vision.mlp,
        vit_gated=vision.window is not None,
        vit_window=vision.window,
        vit_full_layers=len(vision.full_layers),
        llm_layers=hf.num_hidden_layers,
        llm_width=hf.hidden_size,
        llm_mlp=hf.intermediate_size,
        heads=hf.num_attention_heads,
        kv_heads=hf.num_key_value_heads,
        head_dim=hf.hidden_size // hf.num_attention_heads,
    )
    return ModelSizes(
        name=path.parent.name,
        shape=shape,
        vocab_size=hf.vocab_size,
        tied=hf.tie_word_embeddings,
    )
