"""Metrics put to the items of a task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from dct_vl.evaluation.metrics.answers import WORST_SMAPE, parse_price, smape
from dct_vl.evaluation.metrics.choice import extract_choice, pope_scores, says_yes
from dct_vl.evaluation.tasks.task import Scorer, TaskItem, TaskScores


def mean_of(
    name: str, metric: Callable[[str, Sequence[str]], float], *, by_group: bool = False
) -> Scorer:
    """The mean of a metric of single answers; also for each group, as ``name/group``."""

    def score(items: Sequence[TaskItem], answers: Sequence[str]) -> TaskScores:
        values = [metric(a, item.references) for item, a in zip(items, answers, strict=True)]
        return _means(name, items, values, by_group)

    return score


def captions(items: Sequence[TaskItem], answers: Sequence[str]) -> TaskScores:
    """CIDEr-D, CIDEr, BLEU-1 to 4 and ROUGE-L."""
    from dct_vl.evaluation.metrics.captions import caption_scores

    scores = caption_scores([item.references for item in items], answers)
    return TaskScores(total=scores.total, each=scores.each)


def choices(items: Sequence[TaskItem], answers: Sequence[str]) -> TaskScores:
    """Accuracy of the chosen letter, its mean over groups, and the share of unclear answers."""
    chosen = _chosen(items, answers)
    values = [float(c == item.references[0]) for item, c in zip(items, chosen, strict=True)]
    scores = _means("accuracy", items, values, by_group=True)
    unclear = sum(choice is None for choice in chosen) / len(items)
    return TaskScores(total={**scores.total, "unclear": unclear}, each=scores.each)


def choice_pairs(items: Sequence[TaskItem], answers: Sequence[str]) -> TaskScores:
    """MMVP: a pair counts where both of its questions are right.

    An item's `group` is its pair; `pair_accuracy` of an item is its pair's.
    """
    chosen = _chosen(items, answers)
    right = [c == item.references[0] for item, c in zip(items, chosen, strict=True)]
    pairs: dict[str, list[bool]] = defaultdict(list)
    for item, is_right in zip(items, right, strict=True):
        pairs[item.group].append(is_right)
    both = {pair: len(found) == 2 and all(found) for pair, found in pairs.items()}
    total = {
        "pair_accuracy": sum(both.values()) / len(both),
        "accuracy": sum(right) / len(right),
        "unclear": sum(choice is None for choice in chosen) / len(items),
    }
    each = [
        {"accuracy": float(is_right), "pair_accuracy": float(both[item.group])}
        for item, is_right in zip(items, right, strict=True)
    ]
    return TaskScores(total=total, each=each)


def pope(items: Sequence[TaskItem], answers: Sequence[str]) -> TaskScores:
    """POPE's five scores, over all and for each category; no answer at all is a wrong one."""
    true = [item.references[0].strip().lower() == "yes" for item in items]
    said = [
        says_yes(answer) if answer.strip() else not is_true
        for answer, is_true in zip(answers, true, strict=True)
    ]
    total = pope_scores(said, true)
    for group, positions in _groups(items).items():
        part = pope_scores([said[p] for p in positions], [true[p] for p in positions])
        total |= {f"{name}/{group}": value for name, value in part.items()}
    each = [{"accuracy": float(s == t)} for s, t in zip(said, true, strict=True)]
    return TaskScores(total=total, each=each)


def prices(items: Sequence[TaskItem], answers: Sequence[str]) -> TaskScores:
    """SMAPE in percent; an answer without a number has the worst error, 200 %."""
    values = []
    for item, answer in zip(items, answers, strict=True):
        truth, price = parse_price(item.references[0]), parse_price(answer)
        if truth is None:
            raise ValueError(f"the price of {item.key} is {item.references[0]!r}, no number")
        values.append(WORST_SMAPE if price is None else smape(truth, price))
    unread = sum(parse_price(answer) is None for answer in answers) / len(items)
    total = {"smape": sum(values) / len(values), "without_number": unread}
    return TaskScores(total=total, each=[{"smape": value} for value in values])


def _chosen(items: Sequence[TaskItem], answers: Sequence[str]) -> list[str | None]:
    return [
        extract_choice(answer, item.options) for item, answer in zip(items, answers, strict=True)
    ]


def _groups(items: Sequence[TaskItem]) -> dict[str, list[int]]:
    positions: dict[str, list[int]] = defaultdict(list)
    for position, item in enumerate(items):
        if item.group:
            positions[item.group].append(position)
    return dict(sorted(positions.items()))


def _means(
    name: str, items: Sequence[TaskItem], values: Sequence[float], by_group: bool
) -> TaskScores:
    total = {name: _mean(values)}
    groups = _groups(items) if by_group else {}
    parts = {
        f"{name}/{group}": _mean([values[p] for p in positions])
        for group, positions in groups.items()
    }
    if len(parts) > 1:
        total |= {f"{name}_mean_of_groups": _mean(parts.values()), **parts}
    return TaskScores(total=total, each=[{name: value} for value in values])


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
