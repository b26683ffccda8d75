"""Were the runs trained and asked under the same conditions? What holds, and what does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dct_vl.evaluation.compare.pairing import PairedSet
from dct_vl.evaluation.compare.runs import ComparedRun
from dct_vl.inputs.shard_index import keys_by_split

#: sample keys by step
Ledger = Mapping[int, Sequence[str]]

#: beginnings of settings that change neither what is learnt nor asked, or have an own check
_NEUTRAL = (
    "experiment_name log_dir tokenizer. logger. speed. model.cache_dir data.path data.val_path "
    "data.min_pixels data.max_pixels data.num_workers data.worker_timeout_s "
    "trainer.micro_batch_size trainer.accelerator trainer.tensor_parallel_size "
    "trainer.pipeline_parallel_size trainer.context_parallel_size trainer.sequence_parallel "
    "trainer.distributed_optimizer "
    "trainer.val_ trainer.save_every trainer.keep_ trainer.resume trainer.log_every "
    "trainer.stall_warning_s"
)
#: not worth a row of the table: they name the run
_NAMES = ("experiment_name", "log_dir")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One condition: ok, or a warning that the runs cannot be compared for what they are named."""

    kind: Literal["ok", "warning"]
    subject: str
    text: str


def check_conditions(runs: Sequence[ComparedRun], sets: Sequence[PairedSet]) -> list[Finding]:
    """Every condition, warnings first."""
    found = [
        *_pixel_bounds(runs, sets),
        _data(runs, "shards", "data", "the same shards"),
        _data(runs, "split", "split", "the same split into train, val and test"),
        *_streams(runs),
        *_questions(runs, sets),
        *_answered_step(runs, sets),
        *_held_out(runs, [one for one in sets if one.is_from_shards]),
        _settings(runs),
        _length(runs),
        _machine(runs),
    ]
    return sorted(found, key=lambda finding: finding.kind != "warning")


def differing_settings(runs: Sequence[ComparedRun]) -> dict[str, tuple[str, ...]]:
    """Settings that are not the same in all runs → their values, in the order of the runs."""
    flat = [dict(_flatten(asdict(run.config))) for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    return {
        name: tuple(str(settings.get(name, "–")) for settings in flat)
        for name in names
        if not name.startswith(_NAMES) and len({str(s.get(name)) for s in flat}) > 1
    }


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _ok(subject: str, text: str) -> Finding:
    return Finding(kind="ok", subject=subject, text=text)


def _warning(subject: str, text: str) -> Finding:
    return Finding(kind="warning", subject=subject, text=text)


def _each(runs: Sequence[ComparedRun], values: Sequence[object]) -> str:
    """`main 1, control 2`."""
    return ", ".join(f"{run.name} {value}" for run, value in zip(runs, values, strict=True))


def _pixel_bounds(runs: Sequence[ComparedRun], sets: Sequence[PairedSet]) -> Iterator[Finding]:
    subject = "pixel bounds"
    bounds = [(run.config.data.min_pixels, run.config.data.max_pixels) for run in runs]
    shown = [f"{low:,}–{high:,}" for low, high in bounds]
    if len(set(bounds)) == 1:
        yield _ok(subject, f"All runs resize images to {shown[0]} pixels.")
    else:
        yield _warning(
            subject,
            f"The runs resize images to different sizes: {_each(runs, shown)} pixels. What looks "
            "like the tokenizer may be the resolution.",
        )
    for one in sets:
        asked = [run.results[one.name].pixel_bounds for run in runs]
        for run, used, trained in zip(runs, asked, bounds, strict=True):
            if used is not None and used != trained:
                yield _warning(
                    subject,
                    f"{run.name} answered {one.name} with {used[0]:,}–{used[1]:,} pixels, and was "
                    f"trained with {trained[0]:,}–{trained[1]:,}.",
                )


def _data(runs: Sequence[ComparedRun], part: str, subject: str, same: str) -> Finding:
    hashes = [run.data and run.data[part] for run in runs]
    unknown = [run.name for run, value in zip(runs, hashes, strict=True) if value is None]
    if unknown:
        return _warning(
            subject,
            f"Nobody can tell whether the runs had {same}: {', '.join(unknown)} did not write down "
            "a hash, and the shards are not where the run found them.",
        )
    if len(set(hashes)) == 1:
        return _ok(subject, f"All runs had {same} (hash {hashes[0]}).")
    return _warning(subject, f"The runs did not have {same}: hashes are {_each(runs, hashes)}.")


def _streams(runs: Sequence[ComparedRun]) -> Iterator[Finding]:
    subject, first = "sample stream", runs[0]
    for run in runs[1:]:
        pair = f"{first.name} and {run.name}"
        if text := compare_streams(first.ledger, run.ledger):
            yield _warning(subject, f"{pair}: {text}")
        else:
            yield _ok(subject, f"{pair} consumed the same samples in every step.")


def compare_streams(first: Ledger, second: Ledger) -> str | None:
    """What is different, as a sentence; None where each step of both had the same samples.

    The order within a step plays no part: its gradient is a sum. Steps that only the longer of two
    runs did are no difference either.
    """
    if not first or not second:
        return "one of them has no ledger, so nobody can tell whether they saw the same samples."
    common = sorted(first.keys() & second.keys())
    if not common:
        return "their ledgers have no step in common."
    differing = [step for step in common if Counter(first[step]) != Counter(second[step])]
    if not differing:
        return None
    ours, theirs = ({key for step in common for key in led[step]} for led in (first, second))
    if ours == theirs:
        kind = f"the same {len(ours):,} samples came in another order or number"
    else:
        kind = (
            f"{len(ours & theirs):,} samples came in both, {len(ours - theirs):,} and "
            f"{len(theirs - ours):,} only in one"
        )
    return (
        f"they consumed different samples in {len(differing):,} of {len(common):,} steps, the "
        f"first of which is {differing[0]:,}; {kind}."
    )


def _questions(runs: Sequence[ComparedRun], sets: Sequence[PairedSet]) -> Iterator[Finding]:
    for one in sets:
        if any(one.num_unpaired):
            yield _warning(
                "questions",
                f"Of {one.name} only the {len(one.items) + one.num_without_image:,} questions "
                f"that all runs answered count; left out are {_each(runs, one.num_unpaired)}.",
            )
        else:
            yield _ok("questions", f"All runs answered the same questions of {one.name}.")


def _answered_step(runs: Sequence[ComparedRun], sets: Sequence[PairedSet]) -> Iterator[Finding]:
    """A run that went on after it was asked."""
    for one in sets:
        for run in runs:
            asked, last = run.results[one.name].step, run.steps[-1]["step"]
            if asked is not None and asked != last:
                yield _warning(
                    "answers",
                    f"{one.name} of {run.name} are of step {asked:,}, and the run is at step "
                    f"{last:,}: ask it again, or compare what {run.name} was at that step.",
                )


def _held_out(runs: Sequence[ComparedRun], sets: Sequence[PairedSet]) -> Iterator[Finding]:
    subject = "held out"
    if not sets:
        return
    keys = {key for one in sets for key in one.keys}
    seen = {run.name: keys & {k for step in run.ledger.values() for k in step} for run in runs}
    trained_on = [f"{name} {len(found):,}" for name, found in seen.items() if found]
    if trained_on:
        yield _warning(
            subject,
            f"Of the {len(keys):,} samples that were asked about, some were trained on: "
            f"{', '.join(trained_on)}.",
        )
    elif not all(run.ledger for run in runs):
        yield _warning(subject, "Without every ledger nobody can tell whether the questions are.")
    else:
        splits = keys_by_split(runs[0].config.data.path) or {}
        parts = [name for name, members in splits.items() if keys & members]
        named = f", of the split {' and '.join(parts)}" if parts else ""
        yield _ok(
            subject, f"No run was trained on any of the {len(keys):,} samples asked about{named}."
        )


def _settings(runs: Sequence[ComparedRun]) -> Finding:
    neutral = tuple(_NEUTRAL.split())
    changed = [name for name in differing_settings(runs) if not name.startswith(neutral)]
    if changed:
        return _warning(
            "settings", f"The runs were trained with other values of {', '.join(changed)}."
        )
    return _ok("settings", "All settings of model, data, schedule and optimizer are the same.")


def _length(runs: Sequence[ComparedRun]) -> Finding:
    last = [run.steps[-1]["step"] for run in runs]
    if len(set(last)) > 1:
        return _warning("length", f"The runs did different numbers of steps: {_each(runs, last)}.")
    return _ok("length", f"All runs did {last[0]:,} steps.")


def _machine(runs: Sequence[ComparedRun]) -> Finding:
    subject = "machine"
    found = [(run.environment.get("platform"), run.environment.get("packages")) for run in runs]
    if any(one != found[0] for one in found) or found[0][0] is None:
        return _warning(
            subject,
            "The runs do not have the same operating system and package versions written down: "
            "samples a second and memory may differ for that.",
        )
    return _ok(
        subject,
        "Operating system and package versions are the same; the device is not written down.",
    )
