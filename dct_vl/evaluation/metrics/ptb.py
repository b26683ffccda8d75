"""Tokens of captions as coco-caption makes them, without Java.

coco-caption runs ``PTBTokenizer -preserveLines -lowerCase`` of Stanford CoreNLP 3.4.1 and drops
punctuation. Its list of punctuation is in capitals, so that the lower-cased brackets (``-lrb-``)
stay: published scores hold that quirk, and so does this file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dct_vl.evaluation.metrics.ptb_rules import RULES

#: tokens that coco-caption drops (pycocoevalcap/tokenizer/ptbtokenizer.py)
_PUNCTUATION = "'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;"
PUNCTUATION = frozenset(_PUNCTUATION.split())
_BRACKETS = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "&lt;": "<",
    "&gt;": ">",
}
_CURRENCY = {"\u00a2": "cents", "\u00a3": "#"} | dict.fromkeys("\u0080\u00a4\u20a0\u20ac", "$")
_FRACTIONS = {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
#: nearly all of a caption: no class reaches beyond letters that a space ends
_PLAIN_WORD = re.compile("[A-Za-z]+(?= |$)")
_SPLIT_WORDS = re.compile("cannot|gonna|wanna|gotta|lemme|gimme", re.IGNORECASE)
_SPACES = re.compile(r"[\0\s\u200b\u200e\u200f\ufeff]+|&nbsp;")


def tokenize_captions(captions: Sequence[str]) -> list[str]:
    """Captions as coco-caption passes them to its scorers: lower-case tokens joined by spaces.

    All of them at once, because a capital and a period at the end of one (``vitamin C.``) are read
    by how the next one begins, there as here. Classes that captions do not have (Asian emoticons,
    control characters) are left out.
    """
    lines = [re.sub(r"[\r\n]", " ", caption) for caption in captions]
    return [
        " ".join(
            token
            for token in ptb_tokens(line, "\n".join(["", *lines[place + 1 : place + 3], ""]))
            if token not in PUNCTUATION
        )
        for place, line in enumerate(lines)
    ]


def ptb_tokens(line: str, following: str = "\n") -> list[str]:
    """Lower-case tokens of one line, punctuation included; `following` is the text after it."""
    text = line + following
    tokens = []
    place = 0
    while place < len(line):
        if gap := _SPACES.match(line, place):
            place = gap.end()
            continue
        if (plain := _PLAIN_WORD.match(line, place)) and not _SPLIT_WORDS.fullmatch(plain[0]):
            tokens.append(plain[0].lower())
            place = plain.end()
            continue
        token, kind = _longest(text, place)
        place += len(token)
        if kind != "unknown":
            tokens += _written(token, kind).lower().split(" ")
    return tokens


def _longest(text: str, place: int) -> tuple[str, str]:
    """(token, class) of the match at a place that reaches farthest, the first of equal ones."""
    best, kind, reach = "", "", 0
    for rule in RULES:
        found = rule.pattern.match(text, place)
        if found is not None and found.end() > reach:
            best, kind, reach = found[1], rule.name, found.end()
    if best:
        return best, kind
    return text[place], "plain" if _is_symbol(text[place]) else "unknown"


def _is_symbol(character: str) -> bool:
    """A character of the basic plane that stands alone; others the tokenizer drops."""
    return character <= "\uffff" and character.isprintable()


def _written(token: str, kind: str) -> str:
    """How the tokenizer writes a token of a class."""
    if kind == "phone":
        kind, token = "bracket", token.replace(" ", "\u00a0")
    if kind == "bracket":
        for sign, name in _BRACKETS.items():
            token = token.replace(sign, name)
        return token
    if kind == "hyphens":
        return "--" if len(token) in (3, 4) else token
    if kind == "word":
        return token.replace("\u00ad", "")
    if kind in ("quote", "open_quote"):
        return _quote(token, is_open=kind == "open_quote")
    if kind in ("fraction", "tag"):
        return _FRACTIONS.get(token, token.replace(" ", "\u00a0"))
    fixed = {"dash": "--", "ellipsis": "...", "currency": _CURRENCY.get(token, token)}
    return token.replace("&amp;", "&") if kind == "ampersand" else fixed.get(kind, token)


def _quote(token: str, *, is_open: bool) -> str:
    token = re.sub('"|&quot;', "``" if is_open else "''", token)
    token = re.sub("&apos;|'(?!')(?<!'')", "`" if is_open else "'", token) if is_open else token
    token = token.replace("&apos;", "'")
    for signs, written in (
        ("\u0091\u2018\u201b\u2039", "`"),
        ("\u0092\u2019\u203a", "'"),
        ("\u0093\u201c\u00ab", "``"),
        ("\u0094\u201d\u00bb", "''"),
    ):
        for sign in signs:
            token = token.replace(sign, written)
    return token
