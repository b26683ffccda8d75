"""The price task's submission: a row for every product, whatever the model left out."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from dct_vl.evaluation.metrics.smape import parse_price
from dct_vl.evaluation.tasks.item import TaskItem


def write_price_file(
    items: Sequence[TaskItem], answers: Mapping[str, str], train: Sequence[TaskItem], output: Path
) -> int:
    """Write ``sample_id,price`` and return how many prices had to be filled in.

    A product without an answer, or whose answer has no number, gets the median of the training
    prices.

    Args:
        items: products, in the order of the rows.
        answers: text that the model said by key.
        train: products whose prices are known.
        output: CSV file to write.

    Raises:
        ValueError: no price in `train`.
    """
    known = [parse_price(reference) for item in train for reference in item.references]
    prices = [price for price in known if price is not None]
    if not prices:
        raise ValueError("the training file has no price to fill missing ones with")
    median = statistics.median(prices)
    said = [parse_price(answers.get(item.key, "")) for item in items]
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sample_id", "price"])
        for item, price in zip(items, said, strict=True):
            writer.writerow([item.key, median if price is None else price])
    return sum(price is None for price in said)
