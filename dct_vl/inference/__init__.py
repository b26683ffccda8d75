"""One engine for everything that answers."""
