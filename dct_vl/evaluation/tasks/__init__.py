"""Benchmarks: a reader of their own files, a prompt and a metric each."""
