"""Megatron's optimizer with a learning rate for each part, its schedule and its fast paths."""
