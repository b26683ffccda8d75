"""The quickstart's figures, and summary.json made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from dct_vl.evaluation.compare.figures import Comparison, collect
from dct_vl.evaluation.compare.intervals import Interval, wilson_interval
from dct_vl.evaluation.compare.quickstart import Quickstart
from dct_vl.evaluation.compare.results import ItemScore, ResultFile
from dct_vl.runs.series import first_and_last_loss

#: kinds of question with fewer are not what a page leads with
_FEW_QUESTIONS = 10


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Exact answers."""

    num_right: int
    num_answers: int

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.num_right / self.num_answers

    @property
    def interval(self) -> Interval:
        """95 %, each answer taken as independent."""
        return wilson_interval(self.num_right, self.num_answers)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Questions of one kind, as the three answered them."""

    name: str
    has_images: bool
    main: Accuracy
    control: Accuracy
    blank: Accuracy


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Everything that is counted; a question counts where it is about an image."""

    #: of main and control, the control as the baseline
    found: Comparison
    total: Group
    #: by the words that a question begins with; the one that is learnt best first
    kinds: tuple[Group, ...]
    #: by dataset, those without images too
    sources: tuple[Group, ...]
    #: of main and control
    tokens_per_image: tuple[float, float]
    #: means of the first and last five logged steps, of main and control
    losses: tuple[tuple[float, float], tuple[float, float]]
    export: Accuracy | None
    #: answers about images that are not those of the run that was exported
    num_export_differing: int | None


def count(data: Quickstart) -> Figures:
    """Compare the runs and count the answers; a ValueError where they cannot be compared."""
    (main,), (control,) = data.main.results.values(), data.control.results.values()
    answers = main, control, data.blank
    for file in answers:
        _about_images(file)
        _check_paired(main, file)
    found = collect([data.main, data.control], data.control.name)
    (one,) = found.sets
    with_image = {row[0].id for row in one.paired.items}
    kinds = _groups(answers, lambda item: opening(item) if item.id in with_image else None)
    (total,) = _groups(answers, lambda item: "all" if item.id in with_image else None)
    exported = differing = None
    if data.export is not None:
        exported, differing = _count_export(data.export.answers, main)
    return Figures(
        found=found,
        total=total,
        kinds=tuple(sorted(kinds, key=_lead, reverse=True)),
        sources=tuple(_groups(answers, lambda item: item.source)),
        tokens_per_image=(tokens_per_image(main), tokens_per_image(control)),
        losses=(first_and_last_loss(data.main.steps), first_and_last_loss(data.control.steps)),
        export=exported,
        num_export_differing=differing,
    )


def opening(item: ItemScore) -> str:
    """What a question begins with, which says what kind it is: `What color`."""
    return " ".join((item.question or "").split()[:2]).rstrip("?.!,:")


def tokens_per_image(file: ResultFile) -> float:
    """Visual tokens of all samples over their images, which their questions mark."""
    tokens: dict[str, int] = {}
    images: dict[str, int] = {}
    for item in file.items.values():
        if item.num_visual_tokens:
            tokens[item.key] = max(item.num_visual_tokens, tokens.get(item.key, 0))
            images[item.key] = images.get(item.key, 0) + item.num_images
    return sum(tokens.values()) / sum(max(1, number) for number in images.values())


def summary(figures: Figures, data: Quickstart) -> dict[str, Any]:
    """What summary.json holds: the ten agreed keys first, then more about the same."""
    (first, last), (_, control_last) = figures.losses
    main, control = figures.found.runs
    return {
        "tokenizer": str(data.main.config.tokenizer["name"]),
        "train_loss_first": first,
        "train_loss_last": last,
        "val_accuracy": figures.total.main.share,
        "val_accuracy_blank_images": figures.total.blank.share,
        "val_accuracy_control": figures.total.control.share,
        "num_visual_tokens_per_image": figures.tokens_per_image[0],
        "samples_per_second": data.main.cost.samples_per_second,
        "resumed_from_step": data.resume.from_step,
        "resume_max_abs_loss_diff": data.resume.max_abs_loss_diff,
        "control_tokenizer": str(data.control.config.tokenizer["name"]),
        "train_loss_last_control": control_last,
        "val_loss": main.val_loss,
        "val_loss_control": control.val_loss,
        "num_visual_tokens_per_image_control": figures.tokens_per_image[1],
        "samples_per_second_control": data.control.cost.samples_per_second,
        "num_held_out_answers": figures.total.main.num_answers,
        "accuracy_by_source": {
            group.name: {
                "num_answers": group.main.num_answers,
                "accuracy": group.main.share,
                "accuracy_blank_images": group.blank.share,
                "accuracy_control": group.control.share,
            }
            for group in figures.sources
        },
        "resume_num_steps_compared": data.resume.num_steps,
        "num_rejected_samples": sum(data.rejected.values()),
        "num_prepared_samples": data.num_prepared,
        "seconds_total": data.seconds_total,
        "export_max_abs_logit_diff": data.export and data.export.max_abs_logit_diff,
        "eval_exact_match": figures.export and figures.export.share,
        "num_exported_answers": figures.export and figures.export.num_answers,
        "num_exported_answers_differing": figures.num_export_differing,
    }


def _check_paired(ours: ResultFile, theirs: ResultFile) -> None:
    """Raises ValueError unless both answer the same questions: shares compare only then."""
    apart = ours.items.keys() ^ theirs.items.keys()
    if apart:
        key, turn = min(apart)
        raise ValueError(
            f"{len(apart)} questions are answered only by {ours.path} or only by {theirs.path}, "
            f"for instance turn {turn} of {key}: ask all about the same samples"
        )


def _groups(
    answers: tuple[ResultFile, ResultFile, ResultFile], name_of: Callable[[ItemScore], str | None]
) -> list[Group]:
    """Answers by what `name_of` says of the main run's, in alphabetical order; None: left out."""
    members: dict[str, list[tuple[str, int]]] = {}
    for item in answers[0].items.values():
        name = name_of(item)
        if name is not None:
            members.setdefault(name, []).append(item.id)
    groups = []
    for name, ids in sorted(members.items()):
        main, control, blank = ([file.items[i] for i in ids] for file in answers)
        groups.append(
            Group(
                name=name,
                has_images=any(item.num_visual_tokens for item in main),
                main=_accuracy(main),
                control=_accuracy(control),
                blank=_accuracy(blank),
            )
        )
    return groups


def _accuracy(items: Iterable[ItemScore]) -> Accuracy:
    right = [item.got for item in items]
    return Accuracy(num_right=int(sum(right)), num_answers=len(right))


def _lead(kind: Group) -> tuple[bool, float, float]:
    """How much more is right than can be guessed, and than the control has right."""
    ours, is_many = kind.main.share, kind.main.num_answers >= _FEW_QUESTIONS
    return is_many, ours - kind.blank.share, ours - kind.control.share


def _count_export(answers: ResultFile, own: ResultFile) -> tuple[Accuracy, int]:
    strange = [item for item in answers.items.values() if item.id not in own.items]
    if strange:
        raise ValueError(
            f"{answers.path} answers turn {strange[0].turn} of {strange[0].key}, which the run "
            "was not asked: ask both about the same samples"
        )
    items = _about_images(answers)
    return _accuracy(items), sum(own.items[item.id].answer != item.answer for item in items)


def _about_images(file: ResultFile) -> list[ItemScore]:
    """Answers to questions about images; a ValueError where there is none."""
    items = [item for item in file.items.values() if item.num_visual_tokens]
    if not items:
        raise ValueError(f"{file.path} has no answer about an image: ask about other samples")
    return items
