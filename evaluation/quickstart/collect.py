"""Gather what the quickstart left on disk into its report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson

from evaluation.held_out import HeldOut, read_split
from evaluation.quickstart.data import QuickstartResult, QuickstartRun, SamplePicture
from evaluation.quickstart.report import write_quickstart_report
from evaluation.quickstart.resume import resume_difference
from evaluation.seen import look, tokenizer_of
from training.config.schema import RunConfig
from training.data.images import decode_rgb
from training.run_files import read_config

#: pictures of the gallery
NUM_SAMPLES = 12


def collect_and_report(
    folder: Path, *, resumed_from: int, seconds_total: float | None = None
) -> Path:
    """Write report.html and summary.json from the layout that launch/quickstart.sh makes.

    `folder` holds wds/, runs/{main,control,resumed} and answers/{main,blank,control}.jsonl.

    Args:
        folder: the quickstart's output folder.
        resumed_from: step of the checkpoint that runs/resumed went on from.
        seconds_total: wall time of the whole quickstart.

    Returns:
        Path of the page.

    Raises:
        ValueError: a part is missing or does not fit the others.
    """
    runs, answers = folder / "runs", folder / "answers"
    main = read_config(runs / "main")
    control = read_config(runs / "control")
    manifest = orjson.loads((folder / "wds" / "manifest.json").read_bytes())
    result = QuickstartResult(
        main=_run(main, runs / "main", answers / "main.jsonl"),
        control=_run(control, runs / "control", answers / "control.jsonl"),
        blank_answers=answers / "blank.jsonl",
        resume=resume_difference(runs / "main", runs / "resumed", resumed_from),
        pictures=tuple(sample_pictures(main, control, _asked_keys(answers / "main.jsonl"))),
        rejected=manifest["rejected"],
        num_prepared=manifest["kept"],
        seconds_total=seconds_total,
    )
    write_quickstart_report(folder, result)
    return folder / "report.html"


def sample_pictures(
    main: RunConfig, control: RunConfig, asked: set[str], num_samples: int = NUM_SAMPLES
) -> Iterator[SamplePicture]:
    """The first pictures of the validation split about which something was asked.

    As many of each source as of the others, so that the gallery shows them all.
    """
    tokenizers = [tokenizer_of(run) for run in (main, control)]
    by_source: dict[str, list[HeldOut]] = {}
    for sample in read_split(main.data.path, "val"):
        if sample.key in asked and sample.images:
            by_source.setdefault(sample.record.source, []).append(sample)
    per_source = -(-num_samples // max(len(by_source), 1))
    chosen = [s for samples in by_source.values() for s in samples[:per_source]][:num_samples]
    for sample in chosen:
        for data in sample.images:
            frames = decode_rgb(data)
            seen, by_control = (look(tokenizer, frames) for tokenizer in tokenizers)
            yield SamplePicture(
                key=sample.key, original=frames[0], seen=seen, seen_by_control=by_control
            )


def _run(run: RunConfig, folder: Path, answers: Path) -> QuickstartRun:
    return QuickstartRun(tokenizer=str(run.tokenizer["name"]), run_dir=folder, answers=answers)


def _asked_keys(answers: Path) -> set[str]:
    return {orjson.loads(line)["key"] for line in answers.read_bytes().splitlines()}
