"""Training of Qwen2-VL with swappable visual tokenizers on NeMo, Megatron-core and Energon."""
