"""Configurations of the random models: tiny ones with free sizes, and the hub's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from transformers import Qwen2_5_VLConfig, Qwen2VLConfig

from dct_vl.model.random_model.tokenizer import FIRST_SPECIAL_ID_2B, SPECIAL_TOKENS

PATCH_SIZE, TEMPORAL_PATCH_SIZE, MERGE_SIZE = 14, 2, 2
#: Vocabulary sizes are padded to this, so that tensor parallelism can divide them.
VOCAB_MULTIPLE = 128
VOCAB_SIZE_2B = 151936
#: Qwen2.5-VL's windows in pixels, and temporal M-RoPE ids of a second of video.
WINDOW_SIZE, TOKENS_PER_SECOND = 112, 2

AnyConfig: TypeAlias = Qwen2VLConfig | Qwen2_5_VLConfig
_PATCHES = {
    "in_chans": 3,
    "patch_size": PATCH_SIZE,
    "spatial_patch_size": PATCH_SIZE,
    "spatial_merge_size": MERGE_SIZE,
    "temporal_patch_size": TEMPORAL_PATCH_SIZE,
}
#: What config.json calls the two generations of the model.
ModelType: TypeAlias = Literal["qwen2_vl", "qwen2_5_vl"]


@dataclass(frozen=True, kw_only=True)
class TinyShape:
    """Sizes of a small Qwen2-VL or Qwen2.5-VL. Raises ValueError where they do not fit."""

    model_type: ModelType = "qwen2_vl"
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    intermediate_size: int = 384
    vision_depth: int = 4
    vision_embed_dim: int = 128
    vision_num_heads: int = 4
    vision_mlp_ratio: int = 2
    #: Layers of Qwen2.5-VL's vision tower that attend to the whole image, not to windows of it.
    vision_full_layers: tuple[int, ...] = ()
    max_position_embeddings: int = 4096
    #: The hub's 1e6 turns a position by less than 2e-4 rad in the frequencies that M-RoPE gives to
    #: the width: only a pretrained model lives with that. Small grids are learnt with a small base.
    rope_theta: float = 100.0
    #: Standard deviation of all initial matrices. On the drawn images (batches of 16, learning
    #: rate 1e-3) it has 35 % of the answers right after 400 steps; the 0.02 of large models has
    #: 26 % after 430. Blank images give 14 %.
    init_std: float = 0.05
    #: Upper bound of the byte-level BPE vocabulary, special tokens not counted.
    max_bpe_size: int = 1024

    def __post_init__(self) -> None:
        for what, size, parts, by in (
            ("hidden_size", self.hidden_size, self.num_heads, "num_heads"),
            ("num_heads", self.num_heads, self.num_kv_heads, "num_kv_heads"),
            ("vision_embed_dim", self.vision_embed_dim, self.vision_num_heads, "vision_num_heads"),
        ):
            if size % parts:
                raise ValueError(f"{what} is {size}: it must be divisible by {by} = {parts}")
        if self.head_dim % 16:
            raise ValueError(
                f"hidden_size / num_heads is {self.head_dim}: M-RoPE splits half of it 2:3:3, so "
                "it must be divisible by 16"
            )
        vision_head_dim = self.vision_embed_dim // self.vision_num_heads
        if vision_head_dim % 4:
            raise ValueError(
                f"vision_embed_dim / vision_num_heads is {vision_head_dim}: the 2-D rotary "
                "embedding needs a multiple of 4"
            )
        if self.max_bpe_size < 256:
            raise ValueError(
                f"max_bpe_size is {self.max_bpe_size}: a byte-level vocabulary starts with 256"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def mrope_section(self) -> list[int]:
        """Rotary pairs for time, height and width, in Qwen2-VL's ratio 16:24:24."""
        half = self.head_dim // 2
        return [half // 4, half * 3 // 8, half * 3 // 8]


#: 25 million parameters: large enough to read small print, small enough to be pretrained from
#: random weights in minutes on one GPU.
SMALL = TinyShape(
    hidden_size=384,
    num_layers=6,
    num_heads=6,
    num_kv_heads=2,
    intermediate_size=1152,
    vision_depth=6,
    vision_embed_dim=384,
    vision_num_heads=6,
    vision_mlp_ratio=4,
    rope_theta=5.0,
    init_std=0.03,
)
#: The tiny Qwen2.5-VL: every second layer of its vision tower attends to windows.
TINY_25 = TinyShape(model_type="qwen2_5_vl", vision_full_layers=(1, 3))


def tiny_config(shape: TinyShape, *, first_special_id: int) -> AnyConfig:
    """Configuration of a tiny model whose special tokens start at ``first_special_id``."""
    num_ids = first_special_id + len(SPECIAL_TOKENS)
    sizes: dict[str, Any] = dict(
        **_token_ids(first_special_id),
        vocab_size=-(-num_ids // VOCAB_MULTIPLE) * VOCAB_MULTIPLE,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.max_position_embeddings,
        max_window_layers=shape.num_layers,
        sliding_window=shape.max_position_embeddings,
        rms_norm_eps=1e-6,
        initializer_range=shape.init_std,
        rope_theta=shape.rope_theta,
        rope_scaling={"type": "mrope", "mrope_section": shape.mrope_section},
        tie_word_embeddings=True,
    )
    vision = {"depth": shape.vision_depth, "num_heads": shape.vision_num_heads}
    if shape.model_type == "qwen2_5_vl":
        return _config_25(
            sizes,
            **vision,
            hidden_size=shape.vision_embed_dim,
            intermediate_size=shape.vision_embed_dim * shape.vision_mlp_ratio,
            fullatt_block_indexes=list(shape.vision_full_layers),
        )
    return _config(
        sizes, **vision, embed_dim=shape.vision_embed_dim, mlp_ratio=shape.vision_mlp_ratio
    )


def config_2b() -> Qwen2VLConfig:
    """Qwen2-VL-2B-Instruct, as in https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct config.json."""
    sizes = _hub_sizes(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        max_position_embeddings=32768,
        max_window_layers=28,
    )
    return _config(sizes, depth=32, embed_dim=1280, num_heads=16, mlp_ratio=4)


def config_3b_25() -> Qwen2_5_VLConfig:
    """Qwen2.5-VL-3B-Instruct, as in https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct
    config.json.
    """
    sizes = _hub_sizes(
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        max_position_embeddings=128000,
        max_window_layers=70,
    )
    return _config_25(
        sizes,
        depth=32,
        hidden_size=1280,
        num_heads=16,
        intermediate_size=3420,
        fullatt_block_indexes=[7, 15, 23, 31],
    )


def _hub_sizes(**sizes: int) -> dict[str, Any]:
    return sizes | {
        **_token_ids(FIRST_SPECIAL_ID_2B),
        "vocab_size": VOCAB_SIZE_2B,
        "num_key_value_heads": 2,
        "sliding_window": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": True,
    }


def _config(sizes: dict[str, Any], **vision: Any) -> Qwen2VLConfig:
    return Qwen2VLConfig(
        architectures=["Qwen2VLForConditionalGeneration"],
        vision_config=_PATCHES | vision | {"hidden_size": sizes["hidden_size"]},
        **sizes,
    )


def _config_25(sizes: dict[str, Any], **vision: Any) -> Qwen2_5_VLConfig:
    windows = {
        "hidden_act": "silu",
        "window_size": WINDOW_SIZE,
        "tokens_per_second": TOKENS_PER_SECOND,
        "out_hidden_size": sizes["hidden_size"],
    }
    return Qwen2_5_VLConfig(
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        vision_config=_PATCHES | vision | windows,
        **sizes,
    )


def _token_ids(first_special_id: int) -> dict[str, int]:
    ids = {token: first_special_id + offset for offset, token in enumerate(SPECIAL_TOKENS)}
    return {
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
    }
