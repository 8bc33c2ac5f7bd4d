"""What a model said, read from free text: an option's letter, yes or no. None where nothing was said, or two things at once.

Every extractor takes the text, what may be said (``options``), and what that stands for (``choices``, () where it is not known).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

_AFTER = r"(?:or|and|nor|but|is|was|because|since|as)\b"  # before these, "A" and "I" are letters and no English words
_BEFORE = (  # after these, a letter that stands alone is an answer
    r"(?:answer|boxed|is|'s|be|say|think|believe|like|guess|with|so|thus|hence|therefore|definitely|probably|maybe|likely|"
    r"it|either|neither|both|between|or|and|nor)"
)
_PHRASES = (
    r"(?i:\b(?:answer|(?:right|correct|best)\s+(?:option|choice|letter|one))(?:\s+to\s[^.:\n]{{0,80}}?)?\s*"
    r"(?:is|would be|should be|must be|:|=)\s*:?\s*(?:(?:most\s+)?likely|probably|definitely|clearly|therefore)?)\s*{named}",
    r"(?i:(?<!not\s)(?<!n't\s)\b(?:choose|chose|pick|select|go with))\s+{named}",
    r"{named}(?i:\s+(?:is|are|seems|looks)\s+(?:probably\s+|clearly\s+|most\s+likely\s+)?(?:the\s+)?"
    r"(?:right|correct|true|best|answer|one)\b)",
)
_START = (rf"\A\W*{{named}}(?=[)\]\"'.:,;!?]|\s*(?:$|\n)|\s+[-\u2013\u2014]\s|\s+{_AFTER})",)
_MARKS = (
    r"\(\s*({one})\s*\)",
    r"(?i:\b(?:option|choice|letter|answer)\s*:?\s*){several}",
    r"(?m:^\W*{several}(?=[).:\]]|\s*$))",
)
_NEGATION = r"\b(?:no|not|none|never|neither|nor|without|cannot)\b|n't\b"
_UNSURE = (
    r"\bnot (?:sure|certain|clear)\b|\b(?:unsure|uncertain|unclear|unable|maybe|perhaps|possibly|depends)\b|"
    r"(?:\bdo not|\bcannot|\bcan not|n't) (?:know|tell|say|determine|answer)\b|\bcannot be (?:determined|answered)\b|\b(?:hard|difficult) to\b"
)
_PRESENT = r"\bthere(?: is| are|'s)\b|\b(?:contains?|shows?|includes?|depicts?|has|see|visible|present)\b"


def letter(text: str, options: Sequence[str], choices: Sequence[str] = ()) -> str | None:
    """The option that a text names. "Robust", and ours.

    The strongest way of naming decides: a verdict ("the answer is B", "B is right"); a text that begins with the letter; a mark ("(B)", "option
    B", a line of its own); one choice in words and no other word; "B" alone in a sentence, or one choice among other words. Two options in
    the same way contradict each other. Before a word, "A" and "I" are English; small letters count only where they are marked or end a
    clause; no letter is read out of a word.
    """
    letters = "".join(each for each in options if len(each) == 1 and each.isalpha())
    said = _cleaned(text, letters)
    named = _names(letters)
    for patterns in (_PHRASES, () if _lists(said, letters) else _START, _MARKS):
        if found := named(said, patterns):
            return _only(found)
    exact, within = _in_words(said, options, choices)
    alone = named(said, (r"(?:\A\W*|[.,;:!?\n]\s*|(?i:\b" + _BEFORE + r"\s+)){several}",))
    return _only(exact) if exact else _only(alone | within)


def yes_no(text: str, *_: Sequence[str]) -> str | None:
    """Whether a text says yes or no: by the word itself, else by a sentence that affirms or denies. "Robust", and ours.

    "Not sure" and the like are neither, nor are both words at once; "no" before a noun only denies ("there is no dog").
    """
    said = re.sub(r"[*_`]", "", text.replace("\u2019", "'")).casefold()
    if re.search(_UNSURE, said):
        return None
    yes = bool(re.search(r"\byes\b", said))
    clause = r"(?:\A|[.,;:!?/\n]|\b(?:and|or|is|be|say|answer)\b)\W*no\b(?=\s*(?:\Z|[^\w\s]|(?:and|or|there|it|the|this|i|because|since)\b))"
    no = bool(re.search(clause, said))
    if yes or no:
        return None if yes and no else "yes" if yes else "no"
    if re.search(_NEGATION, said):
        return "no"
    return "yes" if re.search(_PRESENT, said) else None


def plain(text: str, *_: Sequence[str]) -> str | None:
    """An open answer in its plainest form: small letters, single blanks, no full stop at its end."""
    return " ".join(text.split()).rstrip(" .").casefold() or None


# --- published rules


def first_letter(before: str) -> Callable[..., str | None]:
    """The first character is the letter, case ignored, after what the pattern ``before`` allows: so "bottle" is B."""

    def extract(text: str, options: Sequence[str], *_: Sequence[str]) -> str | None:
        said = text.replace("\n", " ").strip().upper()
        found = re.match(rf"(?i:{before})([{''.join(options)}])", said)
        return found[1] if found else None

    return extract


def bare(text: str, options: Sequence[str], *_: Sequence[str]) -> str | None:
    """The option where it is all that was said, case ignored: so "Yes." is nothing."""
    said = text.strip().lower()
    return said if said in {option.lower() for option in options} else None


def no_or_else_yes(text: str, *_: Sequence[str]) -> str | None:
    """No where the text holds "No", "no" or "not" before its first full stop, else yes: so "I cannot tell." is yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


# --- inside


def _cleaned(text: str, letters: str) -> str:
    """Without markup, and with small letters raised where they are marked or end a clause after "answer" and the like."""
    said = re.sub(r"\\(?:text|mathrm|mathbf)\b|[*_`$\\{}]|</?\w+>", " ", text.replace("\u2019", "'")).strip()
    small = f"[{letters.lower()}]" if letters else r"[^\s\S]"
    for place in (
        rf"\A\W*{small}\W*\Z",
        rf"\(\s*{small}\s*\)",
        rf"\A\W*{small}(?=[).:](?:\s|\Z))",
        rf"\b(?i:answer|is|option|choice|letter):?\s+{small}(?=\s*(?:\Z|[.,;:!)\n]))",
    ):
        said = re.sub(place, lambda match: re.sub(rf"\b{small}\b", lambda one: one[0].upper(), match[0]), said)
    return said


def _lists(text: str, letters: str) -> bool:
    """Whether a text begins by telling the options over again."""
    return bool(re.match(rf"(?s)\W*{letters[:1]}[).:].*\s\W*{letters[1:2]}[).:]", text))


def _names(letters: str) -> Callable[[str, Iterable[str]], set[str]]:
    """A function that finds the letters named by patterns, which hold ``{one}``, ``{several}`` ("A", "A or B") or ``{named}`` ("option A")."""
    any_of = f"[{letters}]" if letters else r"[^\s\S]"
    one = rf"(?<![\w'-]){any_of}(?![\w']|-\w)(?!(?<=[AI])[ \t]+(?!{_AFTER})[A-Za-z])"
    marked = rf"[(\[\"']?{one}[)\]\"']?"
    several = rf"({marked}(?:\s*(?:,|/|&|\bor\b|\band\b|\bnor\b)\s*(?:maybe\s+|perhaps\s+|possibly\s+)?{marked})*)"
    named = rf"(?:(?i:(?:the\s+)?(?:option|choice|letter))\s*:?\s*)?{several}"

    def find(text: str, patterns: Iterable[str]) -> set[str]:
        found = (
            match[1]
            for pattern in patterns
            for match in re.finditer(pattern.format(one=one, several=several, named=named), text)
        )
        return {each for part in found for each in re.findall(rf"\b{any_of}\b", part)}

    return find


def _in_words(text: str, options: Sequence[str], choices: Sequence[str]) -> tuple[set[str], set[str]]:
    """The options whose choice is all that the text says, and those whose choice is among its words and in no longer choice there."""
    said = _words(text)
    known = [(option, _words(choice)) for option, choice in zip(options, choices, strict=False)]
    known = [(option, words) for option, words in known if words and words != ["nan"]]
    exact = {option for option, words in known if words == said}
    if re.search(_NEGATION, text.casefold()):
        return exact, set()
    spans = [
        (option, start, start + len(words))
        for option, words in known
        for start in range(len(said) - len(words) + 1)
        if said[start : start + len(words)] == words
    ]
    longest = {
        option
        for option, start, end in spans
        if not any(a <= start and end <= b and b - a > end - start for _, a, b in spans)
    }
    return exact, longest


def _words(text: str) -> list[str]:
    words = re.findall(r"(?<!\w)-?\d+(?:[.,]\d+)*|\w+", text.casefold())
    return [word for word in words if word not in ("a", "an", "the")]


def _only(found: set[str]) -> str | None:
    return next(iter(found)) if len(found) == 1 else None
