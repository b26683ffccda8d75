"""Entry point of `python -m dct_tokenizer`."""

from dct_tokenizer.cli import app

if __name__ == "__main__":
    app(prog_name="python -m dct_tokenizer")
