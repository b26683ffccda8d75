"""What an exported folder brings along where plain Qwen2-VL cannot hold the tokenizer.

The modules are ordinary ones here; `dct_vl.export.bundled` writes them into the folder as
siblings, with their imports made relative and `dct_tokenizer` beside them.
"""
