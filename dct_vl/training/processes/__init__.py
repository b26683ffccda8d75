"""Starting a run's processes, and the checks before."""
