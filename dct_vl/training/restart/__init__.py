"""Checkpoints, signals, and going on at the next sample."""
