"""Talk with a model about images and videos, in the terminal or in a browser."""
