"""The page about a run, from what its folder says."""
