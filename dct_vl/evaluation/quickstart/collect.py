"""Gather what the quickstart left on disk into its report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson

from dct_vl.evaluation.compare import read_runs, write_comparison
from dct_vl.evaluation.quickstart.answers import read_answers
from dct_vl.evaluation.quickstart.data import (
    COMPARE_FOLDER,
    ExportProof,
    QuickstartResult,
    QuickstartRun,
    SamplePicture,
)
from dct_vl.evaluation.quickstart.report import write_quickstart_report
from dct_vl.evaluation.quickstart.resume import resume_difference
from dct_vl.inference.seen import look
from dct_vl.inputs.held_out import HeldOut, read_split
from dct_vl.inputs.images import decode_rgb
from dct_vl.runs.config.schema import RunConfig
from dct_vl.runs.derived import RunSettings
from dct_vl.runs.result_names import EXPORT_NAME, outside_answers
from dct_vl.runs.run_files import read_config

#: pictures of the gallery
NUM_SAMPLES = 12


def collect_and_report(
    folder: Path, *, resumed_from: int, seconds_total: float | None = None
) -> Path:
    """Write report.html and summary.json from the layout that launch/quickstart.sh makes.

    `folder` holds wds/, runs/{main,control,resumed}, answers/{main,blank,control}.jsonl, and hf/
    with hf.answers.jsonl of the exported main run. The page that compares main and control goes to
    compare/.

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
    kept, rejected = _prepared(folder / "wds" / "manifest.json")
    result = QuickstartResult(
        main=_run(main, runs / "main", answers / "main.jsonl"),
        control=_run(control, runs / "control", answers / "control.jsonl"),
        blank_answers=answers / "blank.jsonl",
        resume=resume_difference(runs / "main", runs / "resumed", resumed_from),
        export=_export(folder / "hf"),
        pictures=tuple(sample_pictures(main, control, _asked_keys(answers / "main.jsonl"))),
        rejected=rejected,
        num_prepared=kept,
        seconds_total=seconds_total,
    )
    compared = {name: answers / f"{name}.jsonl" for name in ("main", "control")}
    write_comparison(
        read_runs([runs / name for name in compared], answers=compared), folder / COMPARE_FOLDER
    )
    write_quickstart_report(folder, result)
    return folder / "report.html"


def sample_pictures(
    main: RunConfig, control: RunConfig, asked: set[str], num_samples: int = NUM_SAMPLES
) -> Iterator[SamplePicture]:
    """The first pictures of the validation split about which something was asked.

    As many of each source as of the others, so that the gallery shows them all.
    """
    tokenizers = [RunSettings(run).visual for run in (main, control)]
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


def _export(folder: Path) -> ExportProof:
    record = folder / EXPORT_NAME
    try:
        asked = orjson.loads(record.read_bytes())["outside"]
        return ExportProof(
            folder=folder,
            max_abs_logit_diff=asked["max_abs_logit_diff"],
            num_prompts=asked["num_prompts_compared"],
            answers=outside_answers(folder),
        )
    except (OSError, KeyError, TypeError, orjson.JSONDecodeError) as error:
        raise ValueError(
            f"{record} does not say how the folder answered ({error!r}): write it with `python -m "
            f"evaluation export RUN {folder} --outside 40`"
        ) from error


def _prepared(manifest: Path) -> tuple[int, dict[str, int]]:
    """Samples that the data preparation stored, and left out by reason."""
    try:
        counts = orjson.loads(manifest.read_bytes())
        return counts["kept"], counts["rejected"]
    except (OSError, KeyError, TypeError, orjson.JSONDecodeError) as error:
        raise ValueError(
            f"{manifest} does not say what was prepared ({error!r}): write it with `python -m "
            f"data_prep cambrian --data-dir D --output-dir {manifest.parent}`"
        ) from error


def _run(run: RunConfig, folder: Path, answers: Path) -> QuickstartRun:
    return QuickstartRun(tokenizer=str(run.tokenizer["name"]), run_dir=folder, answers=answers)


def _asked_keys(answers: Path) -> set[str]:
    return {line.key for line in read_answers(answers)}
