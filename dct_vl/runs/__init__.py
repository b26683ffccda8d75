"""What a run is in settings and on disk."""
