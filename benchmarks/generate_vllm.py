"""A contestant of generate.py: vLLM, offline, without a cache of images or prefixes.

    PYTHON benchmarks/generate_vllm.py CASE.json RESULT.json

PYTHON is an interpreter that has vLLM, which wants another transformers than this project.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from PIL import Image


def main() -> None:
    """Answer all images and write the result."""
    import vllm

    case = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(case["folder"])
    began = time.perf_counter()
    model = vllm.LLM(
        str(folder / "model"),
        load_format="dummy",
        dtype="bfloat16",
        max_model_len=2048,
        max_num_seqs=256,
        mm_processor_cache_gb=0,
        enable_prefix_caching=False,
        limit_mm_per_prompt={"image": 1, "video": 0},
        gpu_memory_utilization=0.8,
    )
    start = time.perf_counter() - began
    files = sorted(folder.glob(f"{case['width']}x{case['height']}-*.jpg"))[: case["images"]]
    prompt = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"<|vision_start|><|image_pad|><|vision_end|>{case['question']}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    asked = [
        {"prompt": prompt, "multi_modal_data": {"image": Image.open(file).convert("RGB")}}
        for file in files
    ]
    options = vllm.SamplingParams(
        temperature=0.0, max_tokens=case["new_tokens"], ignore_eos=True, detokenize=True
    )
    model.generate(asked[:8], options, use_tqdm=False)
    began = time.perf_counter()
    model.generate(asked[:1], vllm.SamplingParams(temperature=0.0, max_tokens=1), use_tqdm=False)
    first = time.perf_counter() - began
    began = time.perf_counter()
    found = model.generate(asked, options, use_tqdm=False)
    seconds = time.perf_counter() - began
    result = {
        "images_s": len(files) / seconds,
        "tokens_s": sum(len(one.outputs[0].token_ids) for one in found) / seconds,
        "first_s": first,
        "start_s": start,
        "prompt_tokens": len(found[0].prompt_token_ids),
        "what": f"vLLM {vllm.__version__}, at most 256 sequences",
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
