"""Who takes part in train_step.py, with which shapes, and the FLOPs of their steps."""

from __future__ import annotations

import argparse
from typing import Any

from dct_tokenizer import build_tokenizer
from dct_tokenizer.cost import MODELS, ModelShape
from dct_vl.runs.flops import StepWork, step_flops
from dct_vl.runs.model_sizes import ModelSizes

TOKEN_IDS_2B = {
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
}
TEXT_2B = {
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "rope_theta": 1e6,
    "mrope_section": [16, 24, 24],
}
VISION = {
    "depth": 32,
    "embed_dim": 1280,
    "hidden_size": 1536,
    "num_heads": 16,
    "mlp_ratio": 4,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
TINY_IDS = {name: 500 + number for number, name in enumerate(TOKEN_IDS_2B)}
TINY_TEXT = {
    **TEXT_2B,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 384,
    "vocab_size": 640,
    "mrope_section": [4, 6, 6],
}
TINY_VISION = {
    **VISION,
    "depth": 4,
    "embed_dim": 128,
    "hidden_size": 128,
    "num_heads": 4,
    "mlp_ratio": 2,
}

#: contestant → what it changes of the case; `ours` runs as dct_vl.training.fit does; x4 has four
#: times the patches an image and half the images
CONTESTANTS: dict[str, dict[str, Any]] = {
    "packed pixel": {"stack": "ours", "packed": True},
    "newest transformers": {"stack": "hf", "site": "newest"},
    "NeMo stock": {"stack": "nemo", "wants_te": True},
    "packed dct28_420": {"stack": "ours", "packed": True, "tokenizer": "dct28_420"},
    # as many samples as fill about the memory of pixel: smaller steps are bound by launches
    "packed dct28_420 twice": {
        "stack": "ours",
        "packed": True,
        "tokenizer": "dct28_420",
        "times": 2,
    },
    # its steps take seconds
    "pinned transformers": {"stack": "hf", "site": "pinned", "warmup": 2, "steps": 4, "block": 2},
    "packed pixel x4": {"stack": "ours", "packed": True, "large": True},
    "packed dct28_420 x4": {
        "stack": "ours",
        "packed": True,
        "tokenizer": "dct28_420",
        "large": True,
    },
    "packed pixel hybrid": {
        "stack": "ours",
        "packed": True,
        "layer_spec": "hybrid",
        "wants_te": True,
    },
    "packed pixel te": {"stack": "ours", "packed": True, "layer_spec": "te", "wants_te": True},
    "padded pixel": {"stack": "ours", "packed": False},
}
_SWITCHES = ("fused_layers", "compile", "answer_loss", "fused_optimizer")
VARIANTS: dict[str, dict[str, Any]] = {
    "all on": {},
    "answer_loss off": {"overrides": ["speed.answer_loss=false"]},
    "fused_optimizer off": {"overrides": ["speed.fused_optimizer=false"]},
    "fused_layers off": {"overrides": ["speed.fused_layers=false"]},
    "cudnn_attention off": {"overrides": ["speed.cudnn_attention=false"]},
    "layer_spec hybrid": {"layer_spec": "hybrid", "wants_te": True},
    "layer_spec te": {"layer_spec": "te", "wants_te": True},
    "all off": {"overrides": [f"speed.{name}=false" for name in _SWITCHES]},
    "compile off": {"overrides": ["speed.compile=false"]},
    "recompute on": {"overrides": ["speed.recompute=true"]},
}


def base_case(options: argparse.Namespace) -> dict[str, Any]:
    """What all contestants share."""
    grid = round(options.patches**0.5)
    if grid * grid != options.patches or grid % 4:
        raise SystemExit(f"--patches {options.patches}: expected the square of a multiple of 4")
    quick = options.quick
    return {
        "shape": "tiny" if quick else "2b",
        "token_ids": TINY_IDS if quick else TOKEN_IDS_2B,
        "max_text_id": 500 if quick else 151643,
        "text_config": dict(TINY_TEXT if quick else TEXT_2B),
        "vision_config": dict(TINY_VISION if quick else VISION),
        "images": options.images,
        "grid": grid,
        "text": options.text,
        "loss_on": options.loss_on,
        "warmup": options.warmup,
        "steps": options.steps,
        "block": options.block,
        "tokenizer": "pixel",
        "packed": False,
        "layer_spec": options.layer_spec,
        # tiny or not, and on a CPU too, the same code runs
        "overrides": [*(f"speed.{name}=true" for name in _SWITCHES), *options.override],
        "site": None,
        "wants_te": False,
    }


def make_case(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A contestant's case."""
    case = {**base, **changes, "overrides": [*base["overrides"], *changes.get("overrides", ())]}
    if case.pop("large", False):  # twice the side, half the rows
        case |= {"grid": 2 * case["grid"], "images": max(1, case["images"] // 2)}
    case["images"] *= case.pop("times", 1)
    return case


def flops_of(case: dict[str, Any]) -> tuple[float, float]:
    """FLOPs of the case's step, the output layer counted for all tokens, and for those with loss.

    Of a tokenizer the tokens are its own; every stack with stock pixels has the same.
    """
    text, vision = case["text_config"], case["vision_config"]
    visual = build_tokenizer(case["tokenizer"], max_pixels=10**7)
    plan = visual.plan(14 * case["grid"], 14 * case["grid"])
    shape = ModelShape(
        vit_layers=vision["depth"],
        vit_width=vision["embed_dim"],
        vit_mlp=int(vision["embed_dim"] * vision["mlp_ratio"]),
        llm_layers=text["num_hidden_layers"],
        llm_width=text["hidden_size"],
        llm_mlp=text["intermediate_size"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        head_dim=text["hidden_size"] // text["num_attention_heads"],
    )
    assert case["shape"] != "2b" or shape == MODELS["2b"]
    vocab_size = text["vocab_size"]
    sizes = ModelSizes(name=case["shape"], shape=shape, vocab_size=vocab_size, tied=False)
    counter = step_flops(sizes, visual)
    rows, num_text = case["images"], case["text"] + 2
    tokens = plan.num_llm_tokens + num_text
    with_loss = num_text if case["loss_on"] == "text" else tokens
    results = []
    for outputs in (tokens, with_loss):
        work = StepWork(
            num_cells=rows * plan.num_cells,
            cell_pairs=rows * plan.num_cells**2,
            window_pairs=0,
            num_tokens=rows * tokens,
            token_pairs=rows * tokens**2,
            num_output_tokens=rows * outputs,
        )
        results.append(counter.of(work))
    return results[0], results[1]
