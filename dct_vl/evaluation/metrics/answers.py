"""Metrics of one short answer: exact match, ANLS, relaxed accuracy, VQA accuracy, SMAPE."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein


def exact_match(answer: str, references: Sequence[str], *, ignore_case: bool = True) -> float:
    """1.0 where the answer is one of the true ones but for outer space (and case), else 0.0."""
    given = answer.strip()
    truths = [reference.strip() for reference in references]
    if ignore_case:
        given, truths = given.lower(), [truth.lower() for truth in truths]
    return float(given in truths)


def anls(answer: str, references: Sequence[str], threshold: float = 0.5) -> float:
    """Normalised Levenshtein similarity to the closest true answer in [0, 1], 0 below `threshold`.

    DocVQA (arXiv 2007.00398) after Biten et al. 2019 (arXiv 1907.00490, equation 1); its mean over
    questions is ANLS. Case and runs of spaces do not count. A similarity of exactly 0.5 counts, as
    in the challenge's evaluation script.
    """
    given = " ".join(answer.lower().split())
    best = max(
        (
            Levenshtein.normalized_similarity(given, " ".join(truth.lower().split()))
            for truth in references
        ),
        default=0.0,
    )
    return best if best >= threshold else 0.0


def relaxed_match(answer: str, references: Sequence[str], tolerance: float = 0.05) -> float:
    """1.0 where a number is within `tolerance` of the true one or a text equal, else 0.0.

    ChartQA (arXiv 2203.10244, end of section 5.1). "94%" reads as 0.94; a true value of 0 has no
    relative error and is compared as text; case does not count.
    """
    return float(any(_is_close(answer.strip(), truth.strip(), tolerance) for truth in references))


def _is_close(answer: str, truth: str, tolerance: float) -> bool:
    given, true = _number(answer), _number(truth)
    if given is None or not true:
        return answer.lower() == truth.lower()
    return abs(given - true) / abs(true) <= tolerance


def _number(text: str) -> float | None:
    percent = text.endswith("%")
    try:
        value = float(text.rstrip("%"))
    except ValueError:
        return None
    return value / 100 if percent else value


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


_NUMBERS = "zero one two three four five six seven eight nine ten"
_DIGITS = {"none": "0"} | {word: str(digit) for digit, word in enumerate(_NUMBERS.split())}
_ARTICLES = frozenset({"a", "an", "the"})
_SIGNS = r";/[]\"{}()=+\_-><@`,?!".replace('\\"', '"')
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
_PERIOD = re.compile(r"\.(?!\d)")
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't "
    "haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't "
    "mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've "
    "should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've "
    "someone'll someone's something'd something'd've something'll that's there'd there'd've "
    "there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't "
    "what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll "
    "you'd you'd've you'll you're you've"
)


def _misspellings() -> dict[str, str]:
    """Contraction by each way of writing it with one apostrophe missing."""
    found = {"somebody'd": "somebodyd"}  # a slip of the official table, which scores depend on
    for word in _CONTRACTIONS.split():
        for position, sign in enumerate(word):
            if sign == "'":
                found[word[:position] + word[position + 1 :]] = word
    return found


_MISSPELLINGS = _misspellings()
#: three others must agree
_FEWEST_ANNOTATORS = 4


def normalize_answer(text: str) -> str:
    """An answer as the official VQAv2 evaluation (vqaEval.py) compares it.

    Punctuation is dropped or becomes a space, words for 0 to 10 become digits ("none" is 0),
    articles go, contractions get their apostrophes.
    """
    text = re.sub(r"[\n\t]", " ", text).strip()
    drop_all = _COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for sign in _SIGNS:
        beside_space = f"{sign} " in text or f" {sign}" in text
        stripped = stripped.replace(sign, "" if beside_space or drop_all else " ")
    words = [_DIGITS.get(word, word) for word in _PERIOD.sub("", stripped).lower().split()]
    return " ".join(_MISSPELLINGS.get(word, word) for word in words if word not in _ARTICLES)


def normalize_textvqa(text: str) -> str:
    """The same after the extra step of TextVQA's evaluation (EvalAI's answer processor)."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalize_answer(text)


def vqa_accuracy(answer: str, annotations: Sequence[str], *, textvqa: bool = False) -> float:
    """Share in [0, 1]: min(agreeing annotators / 3, 1), averaged over leaving each of them out.

    Antol et al. 2015 (arXiv 1505.00468) and visualqa.org/evaluation: of ten annotators 1, 2, 3 and
    4 who said the same make 0.3, 0.6, 0.9 and 1. Answer and annotations are normalised alike; the
    official script leaves both as they are where all annotators wrote the same, which counts a
    "Yes" wrong for ten times "yes".

    Raises:
        ValueError: fewer than four annotations, of which even a unanimous answer could not make 1.
    """
    if len(annotations) < _FEWEST_ANNOTATORS:
        raise ValueError(
            f"VQA accuracy needs the annotators' answers (ten in VQAv2 and TextVQA), a question "
            f"has {len(annotations)}: take the annotations file, or score single answers as `qa`"
        )
    normalize = normalize_textvqa if textvqa else normalize_answer
    given = normalize(answer)
    agrees = [normalize(said) == given for said in annotations]
    without_one = [sum(agrees) - agree for agree in agrees]
    return sum(min(others / 3, 1.0) for others in without_one) / len(agrees)
