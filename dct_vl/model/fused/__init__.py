"""Faster ways to what NeMo's and Megatron's modules compute; each equals what it replaces."""
