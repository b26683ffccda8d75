"""VQA accuracy against ten annotators (VQAv2, TextVQA)."""

from __future__ import annotations

import re
from collections.abc import Sequence

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
        for place, sign in enumerate(word):
            if sign == "'":
                found[word[:place] + word[place + 1 :]] = word
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
