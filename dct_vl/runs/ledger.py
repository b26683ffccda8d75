"""Which samples a run consumed, from the ledger that every run keeps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import orjson

from data_prep.durable import write_durably
from dct_vl.inputs.rejects import read_rejects
from dct_vl.inputs.shard_index import keys_by_split
from dct_vl.runs.run_files import VALIDATION_NAME, read_config, read_json_lines


@dataclass(frozen=True, kw_only=True)
class EpochSummary:
    """A stretch of as many consumed samples as the training split has to give."""

    number: int
    num_consumed: int
    num_once: int
    num_twice: int
    num_more: int
    #: samples of the split that were neither consumed in the stretch nor rejected
    num_never: int


@dataclass(frozen=True, kw_only=True)
class LedgerSummary:
    """How often the samples of a run were consumed."""

    num_steps: int
    num_consumed: int
    #: times consumed → number of samples
    by_times: dict[int, int]
    #: steps that no line speaks of, although later ones are there
    missing_steps: tuple[int, ...]
    #: of the training split; None where the shards are not at hand
    num_samples: int | None = None
    num_rejected: int = 0
    #: samples of the split that were neither consumed nor rejected; None where it is unknown
    num_never: int | None = None
    epochs: tuple[EpochSummary, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.num_consumed} samples consumed in {self.num_steps} steps"]
        for times, count in sorted(self.by_times.items()):
            lines.append(f"  seen {times} time{'s' if times > 1 else ''}: {count} samples")
        if self.num_samples is None:
            lines.append("  never seen: unknown, the shards of the run are not at hand")
        else:
            lines.append(f"  never seen: {self.num_never} of the {self.num_samples} to train on")
        if self.num_rejected:
            lines.append(f"  rejected, and therefore not to be seen: {self.num_rejected}")
        if self.epochs:
            lines.append("epoch  consumed      once     twice      more     never")
        for epoch in self.epochs:
            counts = (epoch.num_consumed, epoch.num_once, epoch.num_twice, epoch.num_more)
            cells = "".join(f"{count:>10}" for count in (*counts, epoch.num_never))
            lines.append(f"{epoch.number:>5}{cells}")
        if len(self.epochs) > 1 or any(e.num_twice or e.num_more for e in self.epochs):
            lines.append(
                "(an epoch here ends after as many samples as there are; a loader process that is "
                "through with its part begins it again, a little sooner than others where samples "
                "were rejected or packed; with data.mix_epochs=true the buffers mix the end of one "
                "epoch with the start of the next)"
            )
        if self.missing_steps:
            shown = ", ".join(map(str, self.missing_steps[:10]))
            if len(self.missing_steps) > 10:
                shown += f" and {len(self.missing_steps) - 10} more"
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
    """Drop what the ledger and the validations say of steps beyond `step`, which are about to be
    done (again).

    Without this, a restart with fewer data-parallel ranks would leave the lines of the others, and
    a checkpoint could count as the best for what other settings once gave at its step.
    """
    run = Path(run_dir)
    for path in (*run.glob("ledger/dp*.jsonl"), *run.glob(VALIDATION_NAME)):
        kept = [entry for entry in read_json_lines(path) if entry["step"] <= step]
        if not kept:
            path.unlink()
            continue
        write_durably(path, b"".join(orjson.dumps(entry) + b"\n" for entry in kept))


def summarize(run_dir: str | Path) -> LedgerSummary:
    """Counts over a run's ledger, and over its shards where they are where the run found them.

    Raises:
        ValueError: the folder has no ledger.
    """
    steps = read_ledger(run_dir)
    if not steps:
        raise ValueError(f"{run_dir} has no ledger: expected the folder of a run")
    keys = [key for step in steps.values() for key in step]
    times = Counter(keys)
    facts = LedgerSummary(
        num_steps=len(steps),
        num_consumed=len(keys),
        by_times=dict(Counter(times.values())),
        missing_steps=tuple(s for s in range(1, max(steps) + 1) if s not in steps),
    )
    known = _training_keys(Path(run_dir))
    if known is None:
        return facts
    # a rejected sample of one start may be taken by another, with other bounds
    rejected = (read_rejects(Path(run_dir) / "rejects") & known) - times.keys()
    return replace(
        facts,
        num_samples=len(known),
        num_rejected=len(rejected),
        num_never=len(known - times.keys() - rejected),
        epochs=divide(keys, known - rejected),
    )


def divide(keys: list[str], expected: set[str]) -> tuple[EpochSummary, ...]:
    """The consumed samples in their order, in epochs of as many as are expected."""
    rest = iter(keys)
    epochs: list[EpochSummary] = []
    while expected and (stretch := list(islice(rest, len(expected)))):
        times = Counter(stretch)
        of_times = Counter(times.values())
        epochs.append(
            EpochSummary(
                number=len(epochs) + 1,
                num_consumed=len(stretch),
                num_once=of_times[1],
                num_twice=of_times[2],
                num_more=len(times) - of_times[1] - of_times[2],
                num_never=len(expected - times.keys()),
            )
        )
    return tuple(epochs)


def _training_keys(run_dir: Path) -> set[str] | None:
    """Keys of the run's training split from Energon's index; None where it is not at hand."""
    try:
        splits = keys_by_split(read_config(run_dir).data.path)
    except ValueError:
        return None
    return None if splits is None else splits["train"]
