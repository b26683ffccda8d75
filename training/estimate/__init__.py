"""What a run will need, before any GPU is taken: memory a device, time a step, tokens a picture.

Formulas stand where they are computed: `memory` (bytes), `training.flops` (FLOPs).
"""

from training.estimate.estimate import Estimate, Workload, estimate
from training.estimate.model_sizes import ModelSizes, model_sizes

__all__ = ["Estimate", "ModelSizes", "Workload", "estimate", "model_sizes"]
