"""Callbacks that report on a run: parameters, the step log with rates, ledger, progress line."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from megatron.core import parallel_state
from tqdm import tqdm

from dct_vl.inputs.rejects import RejectReader
from dct_vl.inputs.words import token_roles
from dct_vl.model.parts import count_parameters
from dct_vl.runs.flops import StepFlops, StepWork, device_peak_flops
from dct_vl.runs.run_files import STEPS_NAME, VALIDATION_NAME, append_json_line
from dct_vl.training.watch.metering import StepMeter, WordMeter


class StepLog(pl.Callback):
    """Writes steps.jsonl each `log_every` steps, validation.jsonl, the ledger; shows progress."""

    def __init__(self, run_dir: Path, *, last_step: int, log_every: int, flops: StepFlops) -> None:
        self.run_dir = run_dir
        self.last_step = last_step
        self.log_every = log_every
        self.flops = flops
        self._rejects = RejectReader(run_dir / "rejects", "reason")
        self._started = 0.0
        self._peak_flops: float | None = None
        self._bar: tqdm[Any] | None = None
        self._last_val_loss: float | None = None
        self._roles: np.ndarray | None = None

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        module.meter = StepMeter()
        self._peak_flops = device_peak_flops()
        if trainer.is_global_zero:
            self._bar = tqdm(
                total=self.last_step,
                initial=trainer.global_step,
                desc=self.run_dir.name,
                unit="step",
                mininterval=1 if sys.stderr.isatty() else 15,
                file=sys.stderr,
            )

    def on_train_batch_start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        step = trainer.global_step
        meter, module.meter = module.meter, StepMeter()
        data_wait, module.data_wait = module.data_wait, 0.0
        self._write_ledger(step, meter)
        if step % self.log_every and step != self.last_step:
            return
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        totals = meter.totals(parallel_state.get_data_parallel_group(), device)
        if not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        seconds = time.perf_counter() - self._started
        flops = self.flops.of(StepWork.of_totals(totals)) / (seconds * trainer.world_size)
        entry = {
            "step": step,
            "loss": float(metrics["reduced_train_loss"]),
            "lr": float(metrics["lr"]) if "lr" in metrics else None,
            "grad_norm": float(metrics["grad_norm"]) if "grad_norm" in metrics else None,
            **totals,
            "seconds": seconds,
            "samples_per_second": totals["num_samples"] / seconds,
            **token_rates(totals, seconds),
            "data_wait_share": data_wait / seconds,
            # of a device; the share of its peak is None where that is unknown
            "tflops": flops / 1e12,
            "mfu": self._peak_flops and flops / self._peak_flops,
            "peak_memory_gib": _peak_memory_gib(),
            "time": time.time(),
        }
        append_json_line(self.run_dir / STEPS_NAME, entry)
        for logger in trainer.loggers:
            logger.log_metrics(curves(entry), step=step)
        assert self._bar is not None
        self._bar.update(step - self._bar.n)
        shown = progress(entry)
        if step % 50 == 0 and (rejected := self._rejects.read()):
            shown["rejected"] = str(len(rejected))
        if self._last_val_loss is not None:
            shown["val"] = f"{self._last_val_loss:.3f}"
        self._bar.set_postfix(shown, refresh=False)

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        if self._roles is None:
            tokenizer = trainer.datamodule.task_encoder.inputs.chat.tokenizer  # type: ignore[attr-defined]
            self._roles = token_roles(tokenizer, len(tokenizer))
        module.words = WordMeter(roles=self._roles)

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.sanity_checking or "val_loss" not in trainer.callback_metrics:
            return
        self._last_val_loss = float(trainer.callback_metrics["val_loss"])
        num_words, num_right = module.words.totals()
        if trainer.is_global_zero:
            entry = {
                "step": trainer.global_step,
                "loss": self._last_val_loss,
                "word_accuracy": num_right / num_words if num_words else None,
                "num_words": num_words,
            }
            append_json_line(self.run_dir / VALIDATION_NAME, entry)
            if entry["word_accuracy"] is not None:
                for logger in trainer.loggers:
                    accuracy = {"val_word_accuracy": entry["word_accuracy"]}
                    logger.log_metrics(accuracy, step=trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()

    def _write_ledger(self, step: int, meter: StepMeter) -> None:
        """One line a step and data-parallel rank, by the first rank of each replica."""
        if (
            parallel_state.get_tensor_model_parallel_rank() == 0
            and parallel_state.get_context_parallel_rank() == 0
            and parallel_state.is_pipeline_first_stage()
        ):
            rank = parallel_state.get_data_parallel_rank()
            folder = self.run_dir / "ledger"
            folder.mkdir(exist_ok=True)
            entry = {"step": step, "keys": meter.sample_keys}
            append_json_line(folder / f"dp{rank:04d}.jsonl", entry)


def _peak_memory_gib() -> float:
    """Peak of the device's allocator, or of this process where there is no device."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


#: field of a line of steps.jsonl → name of the curve; loss, lr and grad_norm are NeMo's
CURVES = {
    "samples_per_second": "rates/samples_per_second",
    "text_tokens_per_second": "rates/text_tokens_per_second",
    "visual_tokens_per_second": "rates/visual_tokens_per_second",
    "padding_tokens_per_second": "rates/padding_tokens_per_second",
    "tflops": "device/tflops",
    "mfu": "device/mfu",
    "peak_memory_gib": "device/peak_memory_gib",
    "seconds": "step/seconds",
    "data_wait_share": "step/data_wait_share",
}


def token_rates(totals: Mapping[str, int], seconds: float) -> dict[str, float]:
    """Text, visual and padding tokens a second.

    Args:
        totals: `num_text_tokens`, `num_visual_tokens` and `num_padding_tokens` of a step.
    """
    kinds = ("text", "visual", "padding")
    return {f"{kind}_tokens_per_second": totals[f"num_{kind}_tokens"] / seconds for kind in kinds}


def curves(entry: Mapping[str, Any]) -> dict[str, float]:
    """What loggers get of a line of steps.jsonl: what is known of `CURVES`."""
    return {name: entry[key] for key, name in CURVES.items() if entry[key] is not None}


def progress(entry: Mapping[str, Any]) -> dict[str, str]:
    """What the progress line shows of a line of steps.jsonl; short, for it is one line."""
    tokens = entry["text_tokens_per_second"] + entry["visual_tokens_per_second"]
    shown = {
        "loss": f"{entry['loss']:.3f}",
        "samples/s": f"{entry['samples_per_second']:.3g}",
        "tokens/s": f"{tokens:.3g}" if tokens < 1000 else f"{tokens / 1000:.3g}k",
    }
    if entry["mfu"] is not None:
        shown["mfu"] = f"{100 * entry['mfu']:.0f}%"
    return shown | {
        "wait": f"{100 * entry['data_wait_share']:.0f}%",
        "mem": f"{entry['peak_memory_gib']:.1f}G",
    }


PARAMETERS_NAME = "parameters.json"


class ParameterReport(pl.Callback):
    """Prints how many parameters are trained, part by part, and writes parameters.json."""

    def __init__(self, run_dir: Path, *, tuning: str) -> None:
        self.run_dir = run_dir
        self.tuning = tuning

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
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
