"""Token classes of Stanford's PTBTokenizer 3.4.1, as far as captions and short answers need them.

That tokenizer is a longest-match lexer: every class is tried at a place, the match that reaches
farthest wins (what must follow a token counts towards the reach, but is not eaten), and of equal
ones the class that is listed first. `RULES` keeps that order. The classes were written from the
description of Penn Treebank tokens and set right by running the Java program; what a class is for
stands beside it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

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
#: 5-year-old, U.S.-made, two,three-x
HYPHENED = rf"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:{ACRONYM}\.|[A-Za-z0-9\u00ad]+))+"
COMPOUND = (
    rf"(?:[dDoOlL]{APOSTROPHE_LIKE}{ALNUM})?{ALNUM}+"
    rf"(?:{HYPHEN}(?:[dDoOlL]{APOSTROPHE_LIKE}{ALNUM})?{ALNUM}+)*"
)

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


_FILES = (
    "bat|bmp|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|"
    "ppt|ps|py|sql|tar|txt|wav|x|xml|zip|wm[va]|avi|flv|mpg|mp4"
)
#: a capital that ends a sentence loses its period only before these
_STARTERS = (
    "About|According|Additionally|After|An|A|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|"
    "Many|More|Now|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Then|There|These|They|This|"
    "We|When|While|What|Yet|You"
)
_CLOSED = "|".join(re.sub("([A-Z])", r"(?-i:\1)", form) for form in ABBREVIATIONS.split())

RULES: tuple[Rule, ...] = (
    # two words written as one
    _rule("assimilation", "can(?=not)", "not", any_case=True),
    _rule("assimilation", "(?:gon|wan)(?=na)", "na", any_case=True),
    _rule("assimilation", "got(?=ta)", "ta", any_case=True),
    _rule("assimilation", "(?:lem|gim)(?=me)", "me", any_case=True),
    _rule("assimilation", f"{APOSTROPHE}t(?=is|was)", "(?:is|was)", any_case=True),
    _rule("tag", rf"</?[A-Za-z][A-Za-z0-9:._-]*(?:{SPACE}+[A-Za-z][^<>]*)?/?>|<![^>]*>"),
    _rule("dash", "&(?:MD|mdash|ndash);|[\u0096\u0097\u2013\u2014\u2015]"),
    _rule("ampersand", "&amp;"),
    _rule("word", WORD, CLITIC),
    _rule("word", r"[A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*", NEGATION),
    _rule("word", WORD),
    # apostrophes that belong to a word: 'n', ol', 'em, o'clock, O'Brien, ma'am, '20s, c'mon
    _rule("plain", rf"{APOSTROPHE}[nN]{APOSTROPHE}?"),
    _rule("plain", rf"[lLdDjJ]{APOSTROPHE}|(?:[dD]unkin|[sS]omethin|[oO]l){APOSTROPHE}"),
    _rule("plain", rf"{APOSTROPHE}(?:em|till?|cause|[2-9]0s)", any_case=True),
    _rule("plain", rf"{APOSTROPHE}[0-9]{{2}}", rf"(?:{SPACE_OR_LINE}|$)"),
    _rule("plain", rf"[A-HJ-XZn]{APOSTROPHE_LIKE}{LETTER}{{2,}}"),
    _rule("plain", rf"{LETTER}+[aeiouyAEIOUY]{APOSTROPHE_LIKE}[aeiouA-Z]{LETTER}*"),
    _rule(
        "plain", r"cont'd\.?|nor'easter|cap'n|c'mon|e'er|s'mores|ev'ry|li'l|nat'l", any_case=True
    ),
    _rule("plain", rf"[yY]{APOSTROPHE}", LETTER),
    _rule("plain", r'https?://[^ \t\n\f\r"<>|()]+[^ \t\n\f\r"<>|.!?(){},-]'),
    _rule(
        "plain",
        r"(?:www\.(?:[^ \t\n\f\r\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}"
        r"|(?:[^ \t\n\f\r\"`'<>|.!?(){},\-_$/]+\.)+(?:com|net|org|edu))"
        r"(?:/[^ \t\n\f\r\"<>|()]+[^ \t\n\f\r\"<>|.!?(){},-])?",
    ),
    _rule(
        "plain",
        r"[a-zA-Z0-9][^ \t\n\f\r\"<>|()\u00a0{}]*@(?:[^ \t\n\f\r\"<>|(){}.\u00a0]+\.)*"
        r"[^ \t\n\f\r\"<>|(){}\[\].,;:!?\u00a0]+",
    ),
    _rule("plain", r"@[A-Za-z_][A-Za-z_0-9]*"),
    _rule("plain", rf"#{LETTER}(?:{ALNUM}|_)*"),
    _rule("quote", CLITIC, "(?=[^A-Za-z]|$)(?s:.)?"),
    _rule("quote", NEGATION),
    _rule("plain", r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}"),
    _rule("word", NUMBER),
    _rule(
        "plain",
        r"[\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+"
        r"|[\u2080-\u2089]+)",
    ),
    _rule("fraction", r"(?:\d{1,4}[- \u00a0])?\d{1,4}(?:/|\u2044)\d{1,4}"),
    _rule("fraction", "[\u00bc\u00bd\u00be\u2153-\u215e]"),
    # either/or, high-tech/low, 1/2-inch
    _rule("plain", r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"),
    _rule("plain", r"[A-Z]*\$|#"),
    _rule(
        "currency", "[\u00a2-\u00a5\u0080\u20a0\u20ac\u060b\u0e3f\u20a4\uffe0\uffe1\uffe5\uffe6]"
    ),
    _rule("plain", "[A-Za-z]", rf"\.{SPACE_OR_LINE}+(?:{_STARTERS}){SPACE_OR_LINE}"),
    _rule("plain", r"[A-Za-z]\+\+", r"(?![A-Za-z0-9])"),
    _rule("plain", rf"(?:{_CLOSED}|{ACRONYM}|[A-Za-z])\.", any_case=True),
    _rule("plain", NUMBER_ABBREVIATIONS, rf"{SPACE}?\d", any_case=True),
    _rule(
        "phone",
        r"(?:\([0-9]{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0])"
        r"[0-9]{3,4}[- \u00a0.]?[0-9]{3,5}",
    ),
    _rule("bracket", r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", "(?![A-Za-z0-9])"),
    _rule("open_quote", '"|&quot;', "[A-Za-z0-9$]"),
    _rule("quote", '"|&quot;'),
    _rule("bracket", r"[\[\](){}]"),
    _rule("bracket", "&[lg]t;|<+|>+"),
    _rule("hyphens", "-+"),
    _rule("ellipsis", r"\.{3,5}|(?:\.[ \u00a0]){2,4}\.|[\u0085\u2026]"),
    _rule("plain", r"@+|#+|_+|\*+"),
    _rule("plain", r"[?!]+"),
    # 001.jpg; with a letter in front it is a word
    _rule("plain", rf"{ALNUM}+(?:\.{ALNUM}+)*\.(?:{_FILES})", r"[\s.?!,]", any_case=True),
    # before a comma the period is taken for a short form's
    _rule("word", rf"(?:{WORD}|{HYPHENED}|{COMPOUND})\.", "[,;:]"),
    _rule("word", HYPHENED),
    _rule("word", COMPOUND),
    _rule("ampersand", r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+"),
    _rule("open_quote", "'", r"[A-Za-z][^ \t\n\r\u00a0]"),
    _rule(
        "quote",
        rf"''|{APOSTROPHE}|[`\u2018\u2019\u201a-\u201f\u0091-\u0094\u2039\u203a\u00ab\u00bb]{{1,2}}",
    ),
)
