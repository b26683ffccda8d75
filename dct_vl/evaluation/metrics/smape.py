"""SMAPE of predicted prices."""

from __future__ import annotations

import math
import re

#: error of an answer without a number: the worst there is
WORST_SMAPE = 200.0
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{2,3})*,\d{3}|\d+)(?:\.\d+)?|(?<![^\W\d_])-?\.\d+")


def smape(truth: float, prediction: float) -> float:
    """Symmetric absolute percentage error of one value, in [0, 200].

    100·|p - t| / ((|t| + |p|) / 2), so that 100 and 120 differ by 18.18 %. Two zeros differ by 0;
    the mean over values is SMAPE.
    """
    scale = (abs(truth) + abs(prediction)) / 2
    return 100 * (abs(prediction - truth) / scale) if scale else 0.0


def parse_price(text: str) -> float | None:
    """First number in an answer ("$1,299.00" → 1299.0), or None where it has none.

    Groups may have two digits, as in India ("₹1,29,999" → 129999.0), the last one has three.
    The period of a short form is no decimal point ("Rs.1299" → 1299.0), and a run of digits beyond
    the range of floats is no number.
    """
    found = _NUMBER.search(text)
    price = float(found[0].replace(",", "")) if found else math.inf
    return price if math.isfinite(price) else None
