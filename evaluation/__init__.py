"""Out of training: load a checkpoint, answer questions, score, report."""
