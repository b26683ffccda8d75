"""Which samples a run consumed, from the ledger that every run keeps."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import orjson

from training.run_files import read_json_lines


@dataclass(frozen=True, kw_only=True)
class LedgerSummary:
    """How often the samples of a run were consumed."""

    num_steps: int
    num_consumed: int
    #: times consumed → number of samples
    by_times: dict[int, int]
    #: steps that no line speaks of, although later ones are there
    missing_steps: tuple[int, ...]

    def __str__(self) -> str:
        lines = [f"{self.num_consumed} samples consumed in {self.num_steps} steps"]
        for times, count in sorted(self.by_times.items()):
            lines.append(f"  seen {times} time{'s' if times > 1 else ''}: {count} samples")
        if self.missing_steps:
            shown = ", ".join(map(str, self.missing_steps[:10]))
            lines.append(f"  steps without a record: {shown}")
        return "\n".join(lines)


def read_ledger(run_dir: str | Path) -> dict[int, list[str]]:
    """Sample keys by step, all data-parallel ranks together.

    A step that was done twice (before and after a restart) counts once, as it was done last.
    """
    steps: dict[int, list[str]] = {}
    for path in sorted((Path(run_dir) / "ledger").glob("dp*.jsonl")):
        last = {entry["step"]: entry["keys"] for entry in read_json_lines(path)}
        for step, keys in last.items():
            steps.setdefault(step, []).extend(keys)
    return dict(sorted(steps.items()))


def forget_steps_after(run_dir: str | Path, step: int) -> None:
    """Drop what the ledger says of steps beyond `step`, which are about to be done (again).

    Without this, a restart with fewer data-parallel ranks would leave the lines of the others.
    """
    for path in (Path(run_dir) / "ledger").glob("dp*.jsonl"):
        kept = [entry for entry in read_json_lines(path) if entry["step"] <= step]
        if not kept:
            path.unlink()
            continue
        whole = path.with_suffix(".part")
        whole.write_bytes(b"".join(orjson.dumps(entry) + b"\n" for entry in kept))
        os.replace(whole, path)


def summarize(run_dir: str | Path) -> LedgerSummary:
    """Counts over a run's ledger.

    Raises:
        ValueError: the folder has no ledger.
    """
    steps = read_ledger(run_dir)
    if not steps:
        raise ValueError(f"{run_dir} has no ledger: expected the folder of a run")
    times = Counter(key for keys in steps.values() for key in keys)
    return LedgerSummary(
        num_steps=len(steps),
        num_consumed=sum(times.values()),
        by_times=dict(Counter(times.values())),
        missing_steps=tuple(s for s in range(1, max(steps) + 1) if s not in steps),
    )
