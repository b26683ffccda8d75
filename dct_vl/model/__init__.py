"""NeMo's vision-language models with a visual tokenizer plugged in; what all families share."""
