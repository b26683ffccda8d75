"""Qwen2-VL and Qwen2.5-VL folders with random weights, for what must run without a download.

``write_random_model(folder, shape="tiny", corpus=…)`` writes what the hub's folder holds: config,
safetensors, a Qwen2 tokenizer trained on the corpus, processor and chat template.
"""

from dct_vl.model.random_model.folder import write_random_model
from dct_vl.model.random_model.shapes import TinyShape

__all__ = ["TinyShape", "write_random_model"]
