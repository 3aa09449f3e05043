"""Captions to words as coco-caption counts them, without Java.

coco-caption runs the Stanford PTB tokenizer (CoreNLP 3.4.1, `-preserveLines -lowerCase`) and drops the tokens of
`REMOVED`. The rules below were derived by testing that program. They are tried in this order at each position;
text that matches no rule (spaces, quotes, dashes, emoji) only separates words.

 1. plain         a word of letters before a space or one of `,;!?`
 2. tags          <b> and <a b> stay whole, their spaces made no-break; &amp; is "&"; &#8217; stays
 3. addresses     http://..., www..., e-mail, @name, #tag stay whole
 4. dotted        U.S., a.m., U.S.-based keep their periods; a.com, foo.jpg and "yard.The" are one token each
 5. ampersands    AT&T, Q&A: capitals only, "salt&pepper" is three tokens
 6. negations     do n't, ca n't, is n't
 7. apostrophes   inside: o'clock, O'Neil, d'art, ma'am, Hawai'i stay whole; d', l', j', y' come off. Before: 'em, 'til,
                  'cause, 'n', '90s, '05; 't is, 't was. After: 's 'm 'd 're 've 'll come off, and with a curly
                  apostrophe they do so in the middle of a word too (a flaw of the original, kept)
 8. slashes       and/or, 3/4, 10/05/2012: up to three parts
 9. numbers       1,000.50, 10:30, .5, -5; letters come off after a separator (1.5 l), not after digits (3rd)
10. periods       kept by the abbreviations below, by "no" and the like before a number, by any word before
                  one of `,;:`, by a single letter unless a new sentence starts
11. words         x-ray, 20-year-old, 1.5-litre, a_b stay whole; can not, gon na, got ta, wan na, lem me, gim me split
12. smileys       :) is ":-rrb-", as every bracket becomes -lrb- -rrb- -lsb- -rsb- -lcb- -rcb-. These stay in a caption:
                  coco-caption lists them in capitals, but lowers the tokens first
13. signs         US$ and "?!" are one token; pound, euro and cent are #, $ and cents; fractions are spelt out

Left out: PTB joins "1 1/2" and groups of digits like a telephone number's by no-break spaces; and it looks at
the next caption to decide about a single letter's period, while here captions are independent.
"""

from __future__ import annotations

import re

# coco-caption's list, without its brackets in capitals: no token has capitals.
REMOVED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_SPLIT = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
}
_SIGNS = {"£": "#", "€": "$", "¤": "$", "¢": "cents", "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_SIGNS |= {
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": "",
    "&apos;": "",
    "&nbsp;": "",
    "&mdash;": "",
    "&ndash;": "",
}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

_ABBREVIATIONS = """
    adj adm adv al ala alex apr ariz assn assoc atty attys aug ave bldg blvd brig bros calif capt cf cie cmdr co col
    colo comdr conn corp cos cpl ct dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov govs hon inc
    ind insp intl jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mich minn mlle mme mo mon mont mr
    mrs ms msgr mt natl neb nev nov oct okla penn ph plc pres prof pvt rd rep reps rev sen sens sep sept sgt sq
    sr st ste supt tel tenn thu thurs tue tues univ va vs vt wed wis wisc wm wyo"""
_PROPER_ABBREVIATIONS = """
    Ark ARK Del DEL Ill ILL La LA Mass MASS Miss MISS Ore ORE Pa PA Tex TEX Wash WASH mfg Mfg pte Pte pty Pty"""
_BEFORE_NUMBERS = "no nos art ca fig figs op pp"
_SENTENCE_STARTERS = """
    A About According Additionally After An As At But He Her Here However If In It Last Many More Now Once One Other
    Our She Since So Some Such That The Their Then There These They This We What When While Yet You"""


def _any_of(words: str) -> str:
    return "|".join(sorted(words.split(), key=len, reverse=True))


# PTB does not treat superscript digits, fractions and characters beyond the basic plane as letters.
_NO_LETTERS = r"¹²³¼½¾\u2070-\u209c\u2150-\u218f\u2460-\u24ff\u2776-\u2793\U00010000-\U0010ffff"
_L = rf"(?:[^\W\d_{_NO_LETTERS}]|[\u0300-\u036f])"  # a letter, or an accent that combines with one
_A = rf"(?:[^\W_{_NO_LETTERS}]|[\u0300-\u036f])"  # a letter or a digit
_Q = "['\u2019]"
_ENDING = rf"(?:'(?i:[smd]|re|ve|ll)(?!{_L})|\u2019(?i:[smd]|re|ve|ll))"
_WITH_APOSTROPHE = (
    rf"(?:(?:(?!I|Y)[A-Z]|[ndlo])(?!'(?i:re|ve|ll)(?!{_L})){_Q}{_L}{{2,}}"
    rf"|{_L}+[aeiouAEIOU]{_Q}[aeiouAEIOU]{_L}*"
    rf"|(?i:c'mon|s'more|e'er|ne'er|li'l|ev'ry|ma{_Q}am|ol{_Q}|dunkin{_Q}|somethin{_Q}))"
)
_PART = rf"(?:{_WITH_APOSTROPHE}|{_A}+)"
_EMAIL = r"[A-Za-z0-9][A-Za-z0-9'&._+-]*@[A-Za-z0-9](?:[\w.'-]*\w)?"
_NAME = r"[A-Za-z][\w.:-]*"
_WORD_PERIOD = r"(?:\.(?=[,;:]))?"

_RULES = {
    "plain": r"[A-Za-z]+(?=[\s,;!?]|\Z)(?![?!][A-Za-z])|[A-Za-z]{7,}(?=\.(?:\s|\Z))",
    "tag": rf"""</?{_NAME}(?:\s+{_NAME}(?:\s*=\s*(?:'[^']*'|"[^"]*"))?)*\s*/?>|<!--.{{0,200}}?-->|<[!?]{_NAME}[!?]?>""",
    "entity": r"&(?i:amp|lt|gt|quot|apos|nbsp|[mn]dash);",
    "address": r"&\#\d+;|&[A-Za-z](?:acute|grave|uml);"
    r"""|(?i:https?://)[^\s"<>|()]+\.[^\s"<>|()]*[^\s"<>|(){}.,;:!?'-]"""
    r"""|(?i:www)\.(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,4}(?:/[^\s"<>|()]+[^\s"<>|.!?(){},-])?"""
    rf"|<{_EMAIL}>|{_EMAIL}"
    rf"|@[A-Za-z_]\w*|\#{_L}+",
    "dotted": rf"(?:{_A}+-)*(?:[A-Za-z]\.)+[A-Za-z]\.(?!{_L})(?:-{_A}+)*|[Pp][Hh]\.[Dd]\."
    rf"|{_L}{_A}*(?:[.?!]{_L}{_A}*)+(?:-{_A}+)*",
    "ampersand": r"[A-Z]+(?:&(?:amp;)?[A-Z]+)+",
    "negated": rf"{_L}+?(?=(?i:n{_Q}t))",
    "negation": rf"(?i:n{_Q}t)(?!{_L})",
    "prefix": rf"[dljDLJ](?!{_ENDING}){_Q}(?!{_L}{{2}})|j(?!{_ENDING}){_Q}|[yY](?!{_ENDING}){_Q}(?={_L})",
    "before": rf"'[tT](?=(?i:is|was))|{_Q}(?:[nN]{_Q}|(?i:em|till?|cause)|(?:\d\d|[2-9]0s)(?![\w'\u2019-]))"
    rf"|'[nN](?!{_A})|\u2019[nN]",
    "ending": _ENDING,
    "slash": r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*(?:/[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*){1,2}",
    "hyphenated_number": rf"\d+(?:[.,]\d+)+(?:-{_PART})+",
    "number": rf"\d*(?:[.,:]\d+)+{_WORD_PERIOD}|[+-](?:\d*(?:[.,:]\d+)+|\d+)",
    "abbreviation": rf"(?:(?i:{_any_of(_ABBREVIATIONS)})|{_any_of(_PROPER_ABBREVIATIONS)})\."
    rf"|(?i:{_any_of(_BEFORE_NUMBERS)})\.(?=\s*\d)"
    rf"|[A-Za-z]\.(?!\s+(?:{_any_of(_SENTENCE_STARTERS)})(?!\w))",
    "money": r"[A-Z]+\$",
    "word": rf"{_PART}(?:[-\u2010\u2011]{_PART}|_{_A}+)*{_WORD_PERIOD}",
    "smiley": r"[<>]?[:;=][-o']?[()DdPp|\\@\[\]{](?![A-Za-z0-9])",
    "separator": r"-{2,4}(?!-)|\.{3}",
    "sign": r"-{5,}|[?!]+|\*+|\#+|@+|_+|<<|>>|[()\[\]{}$%&+/<=>\\^|~]"
    r"|[¡-©¬®-\u00b4\u00b6-¹¼-¿\u00d7\u00f7\u2016\u2017\u201a\u201e-\u2023\u2030-\u2038\u2042\u2070-\u209c\u20ac\u2100-\u2bff]",
}
_TOKEN = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _RULES.items()))


def tokenize(caption: str) -> list[str]:
    """Return the words of a caption in lower case, without punctuation, as coco-caption counts them."""
    tokens: list[str] = []
    for match in _TOKEN.finditer(caption):
        text, rule = match.group().lower(), match.lastgroup
        if rule in ("plain", "word"):
            tokens += _words(text, caption[match.end() : match.end() + 1])
        else:
            tokens.append(_normal(str(rule), text))
    return [t for t in tokens if t and t not in REMOVED]


def _words(text: str, following: str) -> tuple[str, ...]:
    # "gonna's" stays whole: PTB splits only "gonna" alone.
    return (text,) if following and following in "'\u2019" else _SPLIT.get(text, (text,))


def _normal(rule: str, text: str) -> str:
    if rule in ("entity", "sign", "smiley"):
        text = _SIGNS.get(text, text)
        return _BRACKETS.get(text) or text.replace("(", "-lrb-").replace(")", "-rrb-")
    if rule in ("negation", "ending"):
        return text.replace("\u2019", "'")
    if rule == "tag":
        return re.sub(r"\s", "\u00a0", text)
    if rule == "ampersand":
        return text.replace("&amp;", "&")
    return "" if rule == "separator" else text
