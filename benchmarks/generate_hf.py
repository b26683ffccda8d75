"""A contestant of generate.py: `generate` of the installed transformers, its tensors ready.

python benchmarks/generate_hf.py CASE.json RESULT.json
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoProcessor, Qwen2VLForConditionalGeneration


def main() -> None:
    """Answer one batch three times and write the result."""
    case = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(case["folder"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    began = time.perf_counter()
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = Qwen2VLForConditionalGeneration._from_config(
            AutoConfig.from_pretrained(folder / "model"), attn_implementation="sdpa"
        )
    torch.set_default_dtype(torch.float32)
    model.eval()
    processor = AutoProcessor.from_pretrained(folder / "model", use_fast=False)
    processor.tokenizer.padding_side = "left"
    files = sorted(folder.glob(f"{case['width']}x{case['height']}-*.jpg"))[: case["images"]]
    content = [{"type": "image"}, {"type": "text", "text": case["question"]}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    images = [Image.open(file).convert("RGB") for file in files]
    inputs = processor(
        text=[text] * len(files), images=images, padding=True, return_tensors="pt"
    ).to(device, dtype)
    start, seconds = time.perf_counter() - began, []
    new = case["new_tokens"]
    for tokens in (2, 1, new, new):
        began = time.perf_counter()
        with torch.inference_mode():
            found = model.generate(
                **inputs, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens
            )
        found.tolist()
        seconds.append(time.perf_counter() - began)
    best = min(seconds[2:])
    result = {
        "images_s": len(files) / best,
        "tokens_s": len(files) * new / best,
        "step_ms": (best - seconds[1]) / max(1, new - 1) * 1e3,
        "start_s": start,
        "prompt_tokens": inputs["input_ids"].shape[1],
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
        "what": f"transformers {transformers.__version__}, batch {len(files)}",
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
