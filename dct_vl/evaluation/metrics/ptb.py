"""Tokens of captions as coco-caption makes them, without Java.

coco-caption runs ``PTBTokenizer -preserveLines -lowerCase`` of Stanford CoreNLP 3.4.1 and drops
punctuation. Its list of punctuation is in capitals, so that the lower-cased brackets (``-lrb-``)
stay: published scores hold that quirk, and so does this file.

That tokenizer is a longest-match lexer: every class is tried at a position, the match that reaches
farthest wins (what must follow a token counts towards the reach, but is not eaten), and of equal
ones the class that is listed first. `RULES` keeps that order. What the classes are was read in the
public description of its lexer; the expressions are this project's own, and were held against the
Java program: about every short word with a period behind it, about tens of thousands of lines of
text, and about random strings of words and signs, until the answers agreed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

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
            for token in ptb_tokens(line, "\n".join(["", *lines[position + 1 : position + 3], ""]))
            if token not in PUNCTUATION
        )
        for position, line in enumerate(lines)
    ]


def ptb_tokens(line: str, following: str = "\n") -> list[str]:
    """Lower-case tokens of one line, punctuation included; `following` is the text after it."""
    text = line + following
    tokens = []
    position = 0
    while position < len(line):
        if gap := _SPACES.match(line, position):
            position = gap.end()
            continue
        if (plain := _PLAIN_WORD.match(line, position)) and not _SPLIT_WORDS.fullmatch(plain[0]):
            tokens.append(plain[0].lower())
            position = plain.end()
            continue
        token, kind = _longest(text, position)
        position += len(token)
        if kind != "unknown":
            tokens += _written(token, kind).lower().split(" ")
    return tokens


def _longest(text: str, position: int) -> tuple[str, str]:
    """(token, class) of the match at a position that reaches farthest, the first of equal ones."""
    best, kind, reach = "", "", 0
    for rule in RULES:
        found = rule.pattern.match(text, position)
        if found is not None and found.end() > reach:
            best, kind, reach = found[1], rule.name, found.end()
    if best:
        return best, kind
    character = text[position]
    # one of the basic plane stands alone; others the tokenizer drops
    is_symbol = character <= "\uffff" and character.isprintable()
    return character, "plain" if is_symbol else "unknown"


def _written(token: str, kind: str) -> str:
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


#: raised and lowered digits and fractions are \\w for Python, but no letters
_NUMERALS = r"\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2089\u2150-\u2189"
LETTER = rf"(?:[^\W\d_{_NUMERALS}]|[\u00ad\u0300-\u036f])"
ALNUM = rf"(?:[^\W_{_NUMERALS}]|[\u00ad\u0300-\u036f])"
APOSTROPHE = r"(?:['\u0092\u2019]|&apos;)"
#: quotation marks too that stand inside words, rightly or not
APOSTROPHE_LIKE = r"(?:['\u0091\u0092\u2018\u2019\u201b]|&apos;)"
HYPHEN = r"[-_\u058a\u2010\u2011]"
SPACE = r"[ \t\u00a0\u2000-\u200a\u3000]"
ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"
WORD = rf"{LETTER}{ALNUM}*(?:[.!?]{LETTER}{ALNUM}*)*"
NUMBER = r"[-+]?(?:\d*(?:[.:,\u00ad]\d+)+|\d+)"
CLITIC = rf"{APOSTROPHE}(?:[msdMSD]|[rvRV][eE]|[lL]{{2}})"
NEGATION = rf"[nN]{APOSTROPHE_LIKE}[tT]"
SPACE_OR_LINE = rf"(?:{SPACE}|[\r\n])"
_PLAIN = r"[A-Za-z0-9\u00ad]"
#: 5-year-old, U.S.-made; periods and commas only before the first hyphen
HYPHENED = rf"(?!\u00ad){_PLAIN}(?:{_PLAIN}|[.,])*(?:-(?:{ACRONYM}\.|{_PLAIN}+))+"
#: hors-d'oeuvre, well_made
_PART = rf"(?:[dDoOlL]{APOSTROPHE_LIKE}(?={ALNUM}))?{ALNUM}+"
COMPOUND = rf"{_PART}(?:{HYPHEN}{_PART})*"
#: one side of a slash: half, high-tech, two-in-one
_SIDE = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_ADDRESS = r"(?:[^\s\"<>|()])+(?<![-.,!?{}])"
#: apostrophes that belong to a word, by what stands around them
APOSTROPHE_WORDS = (
    rf"{APOSTROPHE}(?:[nN]{APOSTROPHE}?|em|EM|Em|till?|Till?|[cC]ause|[2-9]0[sS])",
    rf"(?:[lLdDjJ]|[dD]unkin|[sS]omethin|[oO]l){APOSTROPHE}",
    # O'Brien, but neither I'm nor y'all
    rf"(?![IY])(?:[A-Z]|n){APOSTROPHE_LIKE}{LETTER}{LETTER}+",
    # ma'am, Hallowe'en
    rf"{LETTER}+[aeiouyAEIOUY]{APOSTROPHE_LIKE}[aeiouA-Z]{LETTER}*",
    r"(?i:cap'n|c'mon|cont'd\.?|e'er|ev'ry|li'l|nat'l|nor'easter|s'mores)",
)
#: groups of digits, of which one may stand in brackets
_PHONE = (
    r"(?:\(\d{2,3}\)[ \u00a0]?|\+{0,2}\d{2,4}[- \u00a0](?:\d{2,4}[- \u00a0])?)"
    r"\d{3,4}[- \u00a0.]?\d{3,5}"
)
_SMILEY = rf"[<>]?[:;=][-o*']?[{re.escape('()DPdpO{@|[]' + chr(92))}]"

#: short forms that keep their period; a capital in one must be a capital (``wash.`` is a word)
ABBREVIATIONS = (
    "jan feb mar apr jun jul aug sept? oct nov dec "  # months
    "mon tues? wed thu(?:rs)? fri "  # days; Sat. and Sun. are words
    "ala ariz Az Ark calif colo conn ct dak Del fla ga Ill ind kans? ky La Mass md mich minn Miss "
    "mo mont neb nev okla Ore Pa penn tenn Tex va vt Wash wisc? wyo "  # states
    # titles, places
    "mrs? ms drs? profs? sens? reps? attys? lt col gen messrs govs? adm rev maj sgt cpl pvt capt "
    "ste? ave pres lieut hon brig co?mdr pfc spc supts? det mt ft ens msgr mme pte sfc rt bldg "
    "jr sr bros (?:ed|ph)\\.d blvd rd esq "
    "inc cos? corp pp?tys? ltd plc bancorp dept bhd assoc assn univ intl sys "  # companies
    "invt elec natl m[ft]g tel est ext sq ph adj adv etc al seq vs alex wm jos cie a\\.k\\.a cf "
    "treas"
)
#: … only before a number
NUMBER_ABBREVIATIONS = r"(?:nos?|pp?|prop|figs?|art|op|ca)\."


class Rule(NamedTuple):
    """A class of tokens: group 1 of `pattern` is the token, the whole match is its reach."""

    name: str
    pattern: re.Pattern[str]


def _rule(name: str, token: str, following: str = "", *, any_case: bool = False) -> Rule:
    flags = re.IGNORECASE if any_case else 0
    return Rule(name, re.compile(f"({token}){following}", flags))


#: a capital that ends a sentence loses its period only before these
_STARTERS = (
    "About|According|Additionally|After|An|A|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|"
    "Many|More|Now|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Then|There|These|They|This|"
    "We|When|While|What|Yet|You"
)
_CLOSED = "|".join(re.sub("([A-Z])", r"(?-i:\1)", form) for form in ABBREVIATIONS.split())

RULES: tuple[Rule, ...] = (
    # two words written as one: this is the first
    *(
        _rule("plain", first, second, any_case=True)
        for first, second in (("can", "not"), ("gon", "na"), ("wan", "na"), ("got", "ta"))
    ),
    _rule("plain", "lem|gim", "me", any_case=True),
    _rule("plain", f"{APOSTROPHE}t", "(?:is|was)", any_case=True),
    _rule("tag", "</?[A-Za-z][^<>]*>"),
    _rule("dash", "[\u0096\u0097\u2013-\u2015]"),
    _rule("ampersand", "&amp;"),
    _rule("word", WORD, CLITIC),
    _rule("word", "[A-Za-z\u00ad]*(?![nN])[A-Za-z]\u00ad*", NEGATION),
    _rule("word", WORD),
    *(_rule("plain", pattern) for pattern in APOSTROPHE_WORDS),
    _rule("plain", rf"{APOSTROPHE}\d\d", rf"(?:{SPACE_OR_LINE}|$)"),
    _rule("plain", rf"[yY]{APOSTROPHE}", LETTER),
    _rule("plain", rf"https?://{_ADDRESS}"),
    _rule("plain", rf"www\.(?:[\w-]+\.)+[A-Za-z]{{2,4}}(?:/{_ADDRESS})?"),
    _rule("plain", rf"(?:\w+\.)+(?:com|edu|net|org)(?:/{_ADDRESS})?"),
    _rule("plain", r"[A-Za-z0-9][^\s\"<>|(){}@]*@(?:[\w-]+\.)*[\w-]+"),
    _rule("plain", rf"@(?!\d)[A-Za-z0-9_]+|#{LETTER}(?:{ALNUM}|_)*"),
    _rule("quote", CLITIC, "(?:(?![A-Za-z])(?s:.)|$)"),
    _rule("quote", NEGATION),
    _rule("plain", r"\d\d?[-/]\d\d?[-/]\d{2,4}"),
    _rule("word", NUMBER),
    _rule("plain", "[\u207a\u207b\u208a\u208b]?[\u00b2\u00b3\u00b9\u2070-\u2079\u2080-\u2089]+"),
    _rule("fraction", r"(?:\d{1,4}[- \u00a0])?\d{1,4}[/\u2044]\d{1,4}"),
    _rule("fraction", "[\u00bc-\u00be\u2153-\u215e]"),
    _rule("plain", rf"{_SIDE}(?:/{_SIDE}){{1,2}}"),
    _rule("plain", r"[A-Z]*\$|#"),
    _rule(
        "currency", "[\u00a2-\u00a5\u0080\u20a0\u20a4\u20ac\u060b\u0e3f\uffe0\uffe1\uffe5\uffe6]"
    ),
    _rule("plain", "[A-Za-z]", rf"\.{SPACE_OR_LINE}+(?:{_STARTERS}){SPACE_OR_LINE}"),
    _rule("plain", rf"(?:{_CLOSED}|{ACRONYM}|[A-Za-z])\.", any_case=True),
    _rule("plain", NUMBER_ABBREVIATIONS, rf"{SPACE}?\d", any_case=True),
    _rule("phone", _PHONE),
    _rule("bracket", _SMILEY, "(?![A-Za-z0-9])"),
    _rule("open_quote", '"|&quot;', "[A-Za-z0-9$]"),
    _rule("quote", '"|&quot;'),
    _rule("bracket", r"[\[\](){}]|&[lg]t;|<+|>+"),
    _rule("hyphens", "-+"),
    _rule("ellipsis", r"\.{3,5}|(?:\.[ \u00a0]){2,4}\.|[\u0085\u2026]"),
    _rule("plain", r"@+|#+|_+|\*+|[?!]+"),
    # 2.x, v1.6.X
    _rule("plain", rf"{ALNUM}+(?:\.{ALNUM}+)*\.[xX]", r"[\s.?!,]"),
    # before a comma the period is taken for a short form's
    _rule("word", rf"(?:{WORD}|{HYPHENED}|{COMPOUND})\.", "[,;:]"),
    _rule("word", HYPHENED),
    _rule("word", COMPOUND),
    # AT&T, R&B
    _rule("ampersand", "[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+"),
    _rule("open_quote", "'", r"[A-Za-z][^\s\u00a0]"),
    _rule("quote", f"''|{APOSTROPHE}|[`\u0091-\u0094\u2018-\u201f\u2039\u203a\u00ab\u00bb]{{1,2}}"),
)
