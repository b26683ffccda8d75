"""Says at the start of a run how many parameters are trained, part by part."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from dct_vl.model.parts import count_parameters

PARAMETERS_NAME = "parameters.json"


class ParameterReport(pl.Callback):
    """Prints the counts and writes parameters.json.

    Args:
        run_dir: the run's folder.
        tuning: the mode, as in `model.tuning`.
    """

    def __init__(self, run_dir: Path, *, tuning: str) -> None:
        self.run_dir = run_dir
        self.tuning = tuning

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Count, once the model is complete."""
        counts = count_parameters(module.module)
        if not trainer.is_global_zero:
            return
        total = sum(count.total for count in counts.values())
        trained = sum(count.trained for count in counts.values())
        entry = {
            "tuning": self.tuning,
            "total": total,
            "trained": trained,
            "parts": {part: asdict(count) for part, count in counts.items()},
        }
        (self.run_dir / PARAMETERS_NAME).write_text(json.dumps(entry, indent=2))
        parts = ", ".join(f"{p} {c.trained:,} of {c.total:,}" for p, c in counts.items())
        print(
            f"tuning={self.tuning}: {trained:,} of {total:,} parameters are trained ({parts})",
            flush=True,
        )
