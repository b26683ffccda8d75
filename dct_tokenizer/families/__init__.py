"""One file per family; each registers itself when `registry.list_families` imports it."""
