"""Training on NeMo's Trainer, MegatronStrategy and Energon's loaders."""
