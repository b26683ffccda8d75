"""Draw what the model sees, one row per tokenizer, as a PNG and as a page."""

from dct_tokenizer.show.figure import write_png
from dct_tokenizer.show.page import write_html
from dct_tokenizer.show.views import View, look

__all__ = ["View", "look", "write_html", "write_png"]
