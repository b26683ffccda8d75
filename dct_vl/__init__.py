"""Fine-tuning of Qwen2-VL with swappable visual tokenizers: one namespace, one command."""
