"""From shards to batches: Energon task encoder, chat template, batching and the data module."""
