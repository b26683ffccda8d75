"""One contestant of train_step.py: the training step of an installed transformers, on its own.

    python benchmarks/train_step_hf.py CASE.json RESULT.json [SITE]

Needs torch and transformers only, so that any interpreter and any transformers can run it; SITE is
put before everything else where packages are looked for. bf16 parameters, torch's fused AdamW with
bf16 state, SDPA attention, no recomputation: less optimizer work than the float32 master weights of
Megatron's optimizer.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

if len(sys.argv) > 3:
    sys.path.insert(0, sys.argv[3])

import torch
import transformers
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration


def build(case: dict[str, Any], device: str) -> Any:
    """The model with random weights, made on the device."""
    ids = case["token_ids"]
    text = case["text_config"]
    mrope = {"type": "mrope", "mrope_section": text.pop("mrope_section")}
    theta = text.pop("rope_theta")
    is_new = int(transformers.__version__.split(".")[0]) >= 5
    config = Qwen2VLConfig(
        **text,
        **ids,
        rope_theta=theta,
        rope_scaling=mrope,
        vision_config={**case["vision_config"], "in_channels": 3},
    )
    half = torch.bfloat16
    if is_new:
        config.text_config.rope_parameters = {
            "rope_type": "default",
            "mrope_section": mrope["mrope_section"],
            "rope_theta": theta,
        }
    dtype = {"dtype" if is_new else "torch_dtype": half}
    torch.set_default_dtype(half)
    try:
        with torch.device(device):
            model = Qwen2VLForConditionalGeneration._from_config(
                config, attn_implementation="sdpa", **dtype
            )
    finally:
        torch.set_default_dtype(torch.float32)
    return model.train()


def make_batch(case: dict[str, Any], device: str) -> dict[str, torch.Tensor]:
    """Rows of text, one image and text; loss on the text."""
    side, rows, text = case["grid"], case["images"], case["text"]
    num_visual = side * side // 4
    ids = case["token_ids"]
    start = text // 4
    input_ids = torch.randint(10, case["max_text_id"], (rows, text + num_visual + 2), device=device)
    input_ids[:, start] = ids["vision_start_token_id"]
    input_ids[:, start + 1 : start + 1 + num_visual] = ids["image_token_id"]
    input_ids[:, start + 1 + num_visual] = ids["vision_end_token_id"]
    is_image = input_ids == ids["image_token_id"]
    labels = input_ids.masked_fill(is_image, -100) if case["loss_on"] == "text" else input_ids
    batch = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": labels,
        "pixel_values": torch.randn(rows * side * side, 1176, device=device, dtype=torch.bfloat16),
        "image_grid_thw": torch.tensor([[1, side, side]] * rows, device=device),
    }
    if int(transformers.__version__.split(".")[0]) >= 5:
        batch["mm_token_type_ids"] = is_image.long()
    return batch


def main() -> None:
    """Time the steps and write the result."""
    case = json.loads(Path(sys.argv[1]).read_text())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    torch.manual_seed(0)
    model = build(case, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    batch = make_batch(case, device)
    ends = []
    for step in range(1, case["warmup"] + case["steps"] + 1):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step >= case["warmup"] and (step - case["warmup"]) % case["block"] == 0:
            wait()
            ends.append(time.perf_counter())
    seconds = [(end - start) / case["block"] for start, end in itertools.pairwise(ends)]
    result = {
        "versions": f"transformers {transformers.__version__}",
        "optimizer": "torch AdamW fused, bf16 state",
        "seconds": statistics.median(seconds),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
        "loss": float(loss),
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
