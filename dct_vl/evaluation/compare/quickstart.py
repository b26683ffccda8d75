"""What launch/quickstart.sh leaves: two runs and their answers, a resumed run, an export."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dct_vl.evaluation.compare.gallery import Asked, first_of_each_source, from_shards
from dct_vl.evaluation.compare.pairing import pair
from dct_vl.evaluation.compare.results import ResultFile, read_results
from dct_vl.evaluation.compare.runs import ComparedRun, read_runs
from dct_vl.runs.result_files import EXPORT_NAME, outside_answers, read_object
from dct_vl.runs.run_files import read_steps

#: samples of the gallery
NUM_SAMPLES = 12


@dataclass(frozen=True, kw_only=True)
class ResumeProof:
    """The losses of two runs after a restart of one of them."""

    #: step of the checkpoint that the resumed run started from
    from_step: int
    #: later steps that both runs logged
    num_steps: int
    #: 0.0 where every loss is equal to the last digit
    max_abs_loss_diff: float


@dataclass(frozen=True, kw_only=True)
class ExportProof:
    """The main run as a Hugging Face folder, in a process that could not import this project."""

    folder: Path
    #: against the trainer's model, over `num_prompts` prompts
    max_abs_logit_diff: float
    num_prompts: int
    #: the folder's own answers, to some of the questions that the run was asked
    answers: ResultFile


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """Everything that the report is made of."""

    main: ComparedRun
    control: ComparedRun
    #: the main run's answers with every image replaced by an even one
    blank: ResultFile
    resume: ResumeProof
    #: samples of the gallery by key
    samples: Mapping[str, Asked] = field(default_factory=dict)
    #: None: not shown
    export: ExportProof | None = None
    #: samples that the data preparation left out, by reason
    rejected: Mapping[str, int] = field(default_factory=dict)
    #: samples that it stored; None: not shown
    num_prepared: int | None = None
    #: of the whole quickstart; None: not shown
    seconds_total: float | None = None


def read_quickstart(
    folder: Path, *, resumed_from: int, seconds_total: float | None = None
) -> Quickstart:
    """Read what launch/quickstart.sh leaves.

    `folder` holds wds/, runs/{main,control,resumed}, answers/{main,blank,control}.jsonl, and hf/
    with hf.answers.jsonl of the exported main run; runs/resumed went on from the checkpoint of the
    step `resumed_from`. `seconds_total` is the wall time of the whole quickstart.

    Raises:
        ValueError: a part is missing or does not fit the others.
    """
    runs, answers = folder / "runs", folder / "answers"
    names = ("main", "control")
    compared = {name: answers / f"{name}.jsonl" for name in names}
    read = read_runs([runs / name for name in names], answers=compared)
    # on the page they are their tokenizers
    main, control = (replace(run, name=run.tokenizer) for run in read)
    (paired,), _ = pair([main, control])
    kept, rejected = _prepared(folder / "wds" / "manifest.json")
    keys = set(first_of_each_source(paired, NUM_SAMPLES))
    return Quickstart(
        main=main,
        control=control,
        blank=read_results(answers / "blank.jsonl"),
        resume=resume_difference(runs / "main", runs / "resumed", resumed_from),
        samples=from_shards([main, control], keys),
        export=_export(folder / "hf"),
        rejected=rejected,
        num_prepared=kept,
        seconds_total=seconds_total,
    )


def resume_difference(
    uninterrupted_dir: str | Path, resumed_dir: str | Path, from_step: int
) -> ResumeProof:
    """Compare the losses of the steps after `from_step` that both runs logged.

    Of steps that the resumed run did twice, the later ones count.

    Raises:
        ValueError: there is no such step, or a loss that is not finite.
    """
    whole, resumed = (
        {entry["step"]: entry["loss"] for entry in read_steps(folder) if entry["step"] > from_step}
        for folder in (uninterrupted_dir, resumed_dir)
    )
    common = sorted(whole.keys() & resumed.keys())
    if not common:
        raise ValueError(
            f"{uninterrupted_dir} and {resumed_dir} have no step after {from_step} in common "
            f"({len(whole)} and {len(resumed)} logged): let both run beyond the checkpoint"
        )
    for folder, losses in ((uninterrupted_dir, whole), (resumed_dir, resumed)):
        for step in common:
            if losses[step] is None or not math.isfinite(losses[step]):
                raise ValueError(f"{folder}: the loss of step {step} is {losses[step]}, not finite")
    return ResumeProof(
        from_step=from_step,
        num_steps=len(common),
        max_abs_loss_diff=max(abs(whole[step] - resumed[step]) for step in common),
    )


def _export(folder: Path) -> ExportProof:
    record = folder / EXPORT_NAME
    try:
        asked = read_object(record)["outside"]
        numbers = asked["max_abs_logit_diff"], asked["num_prompts_compared"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{record} does not say how the folder answered ({error!r}): write it with "
            f"`dct-vl export RUN {folder} --outside 40`"
        ) from error
    return ExportProof(
        folder=folder,
        max_abs_logit_diff=numbers[0],
        num_prompts=numbers[1],
        answers=read_results(outside_answers(folder)),
    )


def _prepared(manifest: Path) -> tuple[int, dict[str, int]]:
    """Samples that the data preparation stored, and left out by reason."""
    try:
        counts = read_object(manifest)
        return counts["kept"], counts["rejected"]
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{manifest} does not say what was prepared ({error!r}): write it with `python -m "
            f"data_prep cambrian --data-dir D --output-dir {manifest.parent}`"
        ) from error
