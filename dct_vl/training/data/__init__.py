"""From shards to batches: Energon task encoders, packing, and the data module."""
