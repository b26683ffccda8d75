"""The frame, the style and the charts of every HTML page."""
