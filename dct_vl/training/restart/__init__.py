"""Checkpoints, stop signals, and resuming at the next sample."""
