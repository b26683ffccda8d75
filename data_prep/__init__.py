"""Raw datasets to WebDataset shards ready for Energon, and the schema of the samples in them."""
