"""Chat text, images and videos as typed samples and batches."""
