"""Answers to questions, by a checkpoint or a Hugging Face folder."""
