"""NeMo's Qwen2-VL with a visual tokenizer plugged in."""
