"""Configuration of a run: dataclass schemas, Hydra groups, and errors that name the fix."""
