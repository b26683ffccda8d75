"""Answer questions with an exported folder and plain transformers, without this project.

`dct_vl.export.check` starts this file with `python -I`, and it blocks the
project's packages before anything else. It reads requests (JSON lines with messages,
images, max_new_tokens) and the logits that are expected of some of them, and writes one JSON line a
request: answer, num_visual_tokens, and max_abs_logit_diff where logits were expected.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any

PROJECT = ("dct_tokenizer", "data_prep", "dct_vl")


def block_project() -> None:
    """Make the project's packages impossible to import, also where it is installed."""
    for name in PROJECT:
        sys.modules[name] = None  # type: ignore[assignment]
        try:
            import_module(name)
        except ModuleNotFoundError:
            continue
        raise SystemExit(f"{name} can still be imported: this process proves nothing")


def main(folder: str, requests: str, expected: str, output: str, dtype: str) -> None:
    """Answer all requests.

    Args:
        requests: JSONL file, one request a line.
        expected: .npz file of float32 (S, V) logits by the number of the request.
        dtype: name of torch's dtype to compute in.
    """
    import numpy as np

    # before the slow imports
    wanted = np.load(expected)

    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForImageTextToText.from_pretrained(
        folder, trust_remote_code=True, torch_dtype=getattr(torch, dtype)
    )
    model = model.to(device).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True, use_fast=False)
    # use_fast is about images; the slow text tokenizer cannot decode ids that no token has
    processor.tokenizer = AutoTokenizer.from_pretrained(folder)
    marks = processor.tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
    with open(requests, encoding="utf-8") as lines, open(output, "w", encoding="utf-8") as file:
        for number, line in enumerate(lines):
            request: dict[str, Any] = json.loads(line)
            text = processor.apply_chat_template(
                request["messages"], tokenize=False, add_generation_prompt=True
            )
            images = [Image.open(path).convert("RGB") for path in request["images"]]
            inputs = processor(text=[text], images=images or None, return_tensors="pt").to(device)
            ids = inputs["input_ids"]
            with torch.inference_mode():
                answer = model.generate(
                    **inputs, do_sample=False, max_new_tokens=request["max_new_tokens"]
                )[0, ids.shape[1] :]
                found = model(**inputs).logits[0].float() if str(number) in wanted else None
            said: dict[str, Any] = {
                "answer": processor.tokenizer.decode(answer, skip_special_tokens=True).strip(),
                "num_visual_tokens": int(torch.isin(ids, torch.tensor(marks, device=device)).sum()),
            }
            if found is not None:
                target = torch.from_numpy(wanted[str(number)]).to(device)
                if found.shape != target.shape:
                    raise SystemExit(
                        f"{folder} makes {tuple(found.shape)} logits of request {number}, the "
                        f"trainer {tuple(target.shape)}: its processor or vocabulary is another one"
                    )
                said["max_abs_logit_diff"] = (found - target).abs().max().item()
            file.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    block_project()
    main(*sys.argv[1:])
