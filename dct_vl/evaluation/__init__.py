"""Benchmarks, metrics, scores, and runs side by side."""
