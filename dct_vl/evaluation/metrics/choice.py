"""Which option an answer names: multiple choice, and yes or no (POPE)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

#: "A" and "I" are words too: by themselves they only count where they begin no phrase
_WORD_AFTER = r"\s+(?!(?:and|as|because|is|or|since)\b)[a-z]"
_PHRASE = f"(?<=[AI]){_WORD_AFTER}"
#: "answer is a dog" names no letter; "answer is A which …" and "option a shows …" do
_ARTICLE = f"(?<!option a)(?-i:(?<=a){_WORD_AFTER})"


def extract_choice(answer: str, options: Sequence[str] = (), num_options: int = 4) -> str | None:
    """Letter ("A", "B", …) that an answer chooses, or None where it chooses none or several.

    The first of these that applies: the answer is a letter, also as "(a)", "B." or "C)"; it begins
    with one that a sign or a line break ends ("B: the dog"); it says "answer is B", "option B" or
    "choose (B)"; it is an option's text; exactly one letter stands in brackets or by itself in
    capitals; exactly one option's text occurs in it.

    Args:
        options: texts of the options in the order of their letters, where known.
        num_options: how many letters there are where the texts are not known.
    """
    letters = ascii_uppercase[: len(options) or num_options]
    group = f"[{letters}{letters.lower()}]"
    text = answer.strip()
    for pattern in (
        rf"[(\[]?({group})[)\].:,]*",
        rf"[(\[]?({group})[)\].:,]+\s.*",
        rf"[(\[]({group})[)\]].*",
        rf"({group})\s*\n.*",
    ):
        if found := re.fullmatch(pattern, text, re.DOTALL):
            return found[1].upper()
    saying = rf"(?:answer|option|choice|choose)(?:\s+is)?\s*:?\s*[(\[*]*({group})(?![A-Za-z'])"
    saying = f"{saying}(?!{_ARTICLE})"
    said = {found.upper() for found in re.findall(saying, text, re.IGNORECASE)}
    if len(said) == 1:
        return said.pop()
    plain = _plain(text)
    whole = [position for position, option in enumerate(options) if _plain(option) == plain]
    if len(whole) == 1:
        return letters[whole[0]]
    named = {found.upper() for found in re.findall(rf"[(\[]({group})[)\]]", text)}
    named |= set(re.findall(rf"(?<![\w'])[{letters}](?![\w'])(?!{_PHRASE})", text))
    if len(named) == 1:
        return named.pop()
    held = [
        position
        for position, option in enumerate(options)
        if _plain(option) and re.search(rf"\b{re.escape(_plain(option))}\b", plain)
    ]
    return letters[held[0]] if len(held) == 1 else None


def parse_options(text: str) -> tuple[str, ...]:
    """Texts of options written in one line: "(a) Open (b) Closed" → ("Open", "Closed")."""
    pieces = re.split(r"\(([A-Za-z])\)", text)
    return tuple(piece.strip() for piece in pieces[2::2])


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s%/-]", " ", text.lower()).split())


def says_yes(answer: str) -> bool:
    """How POPE (arXiv 2305.10355, evaluate.py) reads an answer.

    Only its first sentence counts, and that is a "no" where the word no or not stands in it, else
    a "yes".
    """
    first = answer.strip().partition(".")[0].replace(",", " ")
    return not {"no", "not"} & set(re.findall(r"\w+", first.lower()))


def pope_scores(said_yes: Sequence[bool], true_yes: Sequence[bool]) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of "yes", and the share of "yes" said; all in [0, 1].

    Raises:
        ValueError: nothing to score, or lists of different lengths.
    """
    if len(said_yes) != len(true_yes) or not said_yes:
        raise ValueError(f"{len(said_yes)} answers for {len(true_yes)} questions; expected as many")
    pairs = list(zip(said_yes, true_yes, strict=True))
    hits = sum(said and true for said, true in pairs)
    precision = hits / sum(said_yes) if any(said_yes) else 0.0
    recall = hits / sum(true_yes) if any(true_yes) else 0.0
    return {
        "accuracy": sum(said == true for said, true in pairs) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "yes_ratio": sum(said_yes) / len(pairs),
    }
