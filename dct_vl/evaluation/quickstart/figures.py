"""The quickstart's figures, and summary.json made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dct_vl.evaluation.quickstart.answers import (
    Accuracy,
    AnswerLine,
    Pictures,
    about_pictures,
    accuracy,
    by_source,
    check_paired,
    count_pictures,
    read_answers,
)
from dct_vl.evaluation.quickstart.data import ExportProof, QuickstartResult, QuickstartRun
from dct_vl.runs.run_files import read_steps
from dct_vl.runs.series import Steps
from dct_vl.training.report import first_and_last_loss, read_validation, steady_throughput


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """One run."""

    tokenizer: str
    steps: Steps
    #: lines of validation.jsonl, by step
    validation: Steps
    answers: tuple[AnswerLine, ...]
    #: over the answers about pictures
    accuracy: Accuracy
    pictures: Pictures
    #: means of the first and last five logged steps
    train_loss_first: float
    train_loss_last: float
    #: median over the steps after the first ten
    samples_per_second: float

    @property
    def val_loss(self) -> float | None:
        """The last validation's loss."""
        return self.validation[-1]["loss"] if self.validation else None


@dataclass(frozen=True, kw_only=True)
class SourceAccuracy:
    """One dataset's answers of the three kinds."""

    source: str
    has_pictures: bool
    main: Accuracy
    control: Accuracy
    blank: Accuracy


@dataclass(frozen=True, kw_only=True)
class ExportFigures:
    """The exported folder's own answers."""

    #: over the answers about pictures
    accuracy: Accuracy
    #: answers about pictures that are not those of the run that was exported
    num_differing: int


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Everything that is counted."""

    main: RunFigures
    control: RunFigures
    blank_accuracy: Accuracy
    sources: tuple[SourceAccuracy, ...]
    #: answers about pictures that only one of the two runs has right
    num_only_main_right: int
    num_only_control_right: int
    export: ExportFigures | None


def collect(data: QuickstartResult) -> Figures:
    """Read the runs and the answers.

    Raises:
        ValueError: a run without a step, or answers that cannot be compared.
    """
    main, control = _run_figures(data.main), _run_figures(data.control)
    blank = read_answers(data.blank_answers)
    check_paired(main.answers, control.answers, str(data.control.answers))
    check_paired(main.answers, blank, str(data.blank_answers))
    groups = [by_source(lines) for lines in (main.answers, control.answers, blank)]
    main_right, control_right = (
        {(line.key, line.turn) for line in about_pictures(run.answers) if line.correct}
        for run in (main, control)
    )
    pictured = {(line.key, line.turn) for line in about_pictures(main.answers)}
    return Figures(
        main=main,
        control=control,
        blank_accuracy=accuracy(line for line in blank if (line.key, line.turn) in pictured),
        sources=tuple(
            SourceAccuracy(
                source=source,
                has_pictures=bool(about_pictures(groups[0][source])),
                main=accuracy(groups[0][source]),
                control=accuracy(groups[1][source]),
                blank=accuracy(groups[2][source]),
            )
            for source in groups[0]
        ),
        num_only_main_right=len(main_right - control_right),
        num_only_control_right=len(control_right - main_right),
        export=None if data.export is None else _export_figures(data.export, main),
    )


def summary(figures: Figures, data: QuickstartResult) -> dict[str, Any]:
    """What summary.json holds: the ten agreed keys first, then more about the same."""
    main, control = figures.main, figures.control
    return {
        "tokenizer": main.tokenizer,
        "train_loss_first": main.train_loss_first,
        "train_loss_last": main.train_loss_last,
        "val_accuracy": main.accuracy.share,
        "val_accuracy_blank_images": figures.blank_accuracy.share,
        "val_accuracy_control": control.accuracy.share,
        "num_visual_tokens_per_image": main.pictures.tokens_per_picture,
        "samples_per_second": main.samples_per_second,
        "resumed_from_step": data.resume.from_step,
        "resume_max_abs_loss_diff": data.resume.max_abs_loss_diff,
        "control_tokenizer": control.tokenizer,
        "train_loss_last_control": control.train_loss_last,
        "val_loss": main.val_loss,
        "val_loss_control": control.val_loss,
        "num_visual_tokens_per_image_control": control.pictures.tokens_per_picture,
        "samples_per_second_control": control.samples_per_second,
        "num_held_out_answers": main.accuracy.num_answers,
        "accuracy_by_source": {
            entry.source: {
                "num_answers": entry.main.num_answers,
                "accuracy": entry.main.share,
                "accuracy_blank_images": entry.blank.share,
                "accuracy_control": entry.control.share,
            }
            for entry in figures.sources
        },
        "resume_num_steps_compared": data.resume.num_steps,
        "num_rejected_samples": sum(data.rejected.values()),
        "num_prepared_samples": data.num_prepared,
        "seconds_total": data.seconds_total,
        "export_max_abs_logit_diff": data.export and data.export.max_abs_logit_diff,
        "eval_exact_match": figures.export and figures.export.accuracy.share,
        "num_exported_answers": figures.export and figures.export.accuracy.num_answers,
        "num_exported_answers_differing": figures.export and figures.export.num_differing,
    }


def _export_figures(export: ExportProof, main: RunFigures) -> ExportFigures:
    lines = about_pictures(read_answers(export.answers))
    own = {(line.key, line.turn): line.answer for line in main.answers}
    strange = [line for line in lines if (line.key, line.turn) not in own]
    if strange:
        raise ValueError(
            f"{export.answers} answers turn {strange[0].turn} of {strange[0].key}, which the run "
            "was not asked: ask both about the same samples"
        )
    return ExportFigures(
        accuracy=accuracy(lines),
        num_differing=sum(own[line.key, line.turn] != line.answer for line in lines),
    )


def _run_figures(run: QuickstartRun) -> RunFigures:
    steps = read_steps(run.run_dir)
    answers = read_answers(run.answers)
    try:
        first, last = first_and_last_loss(steps)
        rate = steady_throughput(steps)
    except ValueError as error:
        raise ValueError(f"{run.run_dir}: {error}") from error
    return RunFigures(
        tokenizer=run.tokenizer,
        steps=steps,
        validation=read_validation(run.run_dir),
        answers=answers,
        accuracy=accuracy(about_pictures(answers)),
        pictures=count_pictures(answers),
        train_loss_first=first,
        train_loss_last=last,
        samples_per_second=rate,
    )
