"""Talk with a model about pictures and videos, in the terminal or in a browser."""
