"""The field's metrics, without Java, each held by published numbers in its tests."""
