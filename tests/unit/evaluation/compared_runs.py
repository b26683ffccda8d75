"""Folders of finished runs with their answers, as training and `dct-vl answers` leave them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dct_vl.runs.config.compose import compose_config
from dct_vl.runs.run_files import STEPS_NAME, VALIDATION_NAME, append_json_line, write_provenance

STEP = {
    "num_samples": 4,
    "num_text_tokens": 300,
    "num_visual_tokens": 100,
    "num_padding_tokens": 50,
    "num_answer_tokens": 40,
    "num_cells": 400,
    "num_cell_pairs": 12_000,
    "num_window_pairs": 0,
    "num_token_pairs": 45_000,
}


def write_run(
    folder: Path,
    *,
    data: Path | str,
    model: Path | str,
    overrides: Sequence[str] = (),
    losses: Sequence[float] = (4.0, 3.0, 2.0),
    rates: Sequence[float] = (10.0, 30.0, 20.0),
    peak: float | None = 1.5,
    step: Mapping[str, Any] = STEP,
    keys: Mapping[int, Sequence[str]] | None = None,
    val_losses: Mapping[int, float] | None = None,
) -> Path:
    """A run of as many steps as losses; `keys` is its ledger."""
    settings = [f"data.path={data}", f"model.path={model}", *overrides]
    if not any(text.startswith("tokenizer=") for text in settings):
        settings.append("tokenizer=dct28_420")
    settings += [f"experiment_name={folder.name}", f"log_dir={folder.parent}"]
    write_provenance(compose_config(settings), folder)
    for number, (loss, rate) in enumerate(zip(losses, rates, strict=True), start=1):
        line = {"step": number, "loss": loss, "samples_per_second": rate, "seconds": 4 / rate}
        append_json_line(
            folder / STEPS_NAME, {**step, **line, "peak_memory_gib": peak and peak - 0.5 / number}
        )
    for number, loss in (val_losses or {}).items():
        append_json_line(folder / VALIDATION_NAME, {"step": number, "loss": loss})
    (folder / "ledger").mkdir(exist_ok=True)
    ledger = {n: [f"t{n}"] for n in range(1, len(losses) + 1)} if keys is None else keys
    for number, of_step in ledger.items():
        append_json_line(
            folder / "ledger" / "dp0000.jsonl", {"step": number, "keys": list(of_step)}
        )
    return folder


def answer(key: str, right: bool | int, *, turn: int = 1, **changes: Any) -> dict[str, Any]:
    """A line of `dct-vl answers`."""
    line = {
        "key": key,
        "turn": turn,
        "question": f"<image>\nQuestion {turn}?",
        "truth": "yes",
        "answer": "yes" if right else "no",
        "correct": bool(right),
        "source": "shapes",
        "num_visual_tokens": 9,
    }
    return {**line, **changes}


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
