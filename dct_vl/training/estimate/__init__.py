"""What a run will need, before any GPU is taken: memory a device, time a step, tokens an image.

Formulas stand where they are computed: `memory` (bytes), `dct_vl.runs.flops` (FLOPs).
"""

from dct_vl.training.estimate.estimate import Estimate, Workload, estimate

__all__ = ["Estimate", "Workload", "estimate"]
