# ruff: noqa: RUF001 (words of other alphabets)
r"""Rules that read an option's letter, yes or no from free text. None for a text that names nothing, or two things at once.

Every extractor takes the text, the permitted answers (``options``), and their texts (``choices``, () if unknown). The rules called
"robust" are our own: they skip the model's reasoning, prefer ``\boxed{...}`` and ``<answer>...</answer>``, ignore denied options, and
read the usual sentences of some other languages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from unicodedata import normalize

Extract = Callable[..., str | None]

#: A character of a script that puts spaces between words; Chinese, Japanese, Korean and Thai do not, so "选B" holds a letter of its own.
_WORD = r"[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
_AFTER = (  # before these, "A" and "I" are letters, not English words
    r"(?:or|and|nor|but|not|rather|is|was|because|since|as|o|ou|oder|y|und|et|es|est|ist|è|é|no\s+es|n'est|non\s+è)\b"
)
_BEFORE = (  # after these, a letter that stands alone is an answer
    r"(?:answer|boxed|is|'s|be|say|think|believe|like|guess|with|so|thus|hence|therefore|definitely|probably|maybe|likely|"
    r"surely|certainly|it|either|neither|both|between|or|and|nor|but|rather|es|est|ist|è|é)"
)
_OPTION = r"(?:option|choice|letter|opci[óo]n|opção|opzione|alternativa|letr[ae]|lettre|lettera|antwort|buchstabe|вариант|选项|選項)"
#: "The answer" in other languages, then verbs, articles and adjectives that may stand between it and the letter.
_ANSWER = normalize(
    "NFKC",
    r"(?:respuesta|réponse|antwort|risposta|resposta|antwoord|ответ|odpowiedź|cevap|jawaban(?:nya)?|đáp\s+án|câu\s+trả\s+lời|"
    r"答案|答え|正解|选|選|정답|답|उत्तर|الإجابة|الجواب|คำตอบ)",
)
_FILLER = (
    r"(?:es|est|ist|lautet|è|é|is|jest|to|là|adalah|هي|هو|คือ|是|为|為|は|은|는|择|擇|项|項|la|le|el|il|l'|die|het|a|"
    rf"correct[aoe]?|corretta|certa|giusta|juste|bonne|juist|poprawna|đúng|الصحيحة|正确|正確|{_OPTION})"
)
_RIGHT = (
    r"(?:correct[aoe]?|corretta|certa|giusta|juste|bonne|richtig|juist|верно|правильно|正确|正確|正しい|对|對|정답)"
)
_WRONG = (
    r"(?:wrong|false|untrue|unlikely|impossible|implausible|invalid|inaccurate|excluded|eliminated|(?:ruled\s+)?out|incorrect[aoe]?|falsa|"
    r"fausse|falsch|sbagliata|errad[ao]|errata|неверно|错误|錯誤|不正确|不正確|不对|不對|错)(?!\w)"
)
_IS = r"(?:is|are|was|were|seems?|looks?|appears?|(?:must|would|should|can)\s+be|es|est|ist|è|é|是|が|가)"
_PHRASES = (
    r"(?i:\b(?:answer|(?:right|correct|best)\s+(?:option|choice|letter|one))(?:\s+to\s[^.:\n]{{0,80}}?)?\s*"
    r"(?:is|would be|should be|must be|:|=)\s*:?\s*(?:(?:most\s+)?likely|probably|definitely|clearly|therefore)?)\s*{named}",
    rf"(?i:{_ANSWER}(?:\s*{_FILLER}){{{{0,5}}}}\s*[:=\u2013\u2014-]?(?:\s*{_FILLER}){{{{0,3}}}})\s*{{named}}",
    r"(?i:\b(?:choose|chose|pick|select|go with|elijo|escolho|choisis|wähle|scelgo|выбираю))\s+{named}",
    rf"{{named}}(?i:\s*{_IS}?\s*(?:probably\s+|clearly\s+|most\s+likely\s+)?(?:(?:the|la|le|die|de|a)\s+)?(?:(?<=\s)(?:right|true|best|answer|one)\b|{_RIGHT}))",
)
_START = (rf"\A\W*{{named}}(?=[)\]\"'.:,;!?]|\s*(?:$|\n)|\s+[-\u2013\u2014]\s|\s+{_AFTER})",)
_MARKS = (
    r"\(\s*({one})\s*\)",
    rf"(?i:\b(?:{_OPTION}|answer)\s*:?\s*){{several}}",
    r"(?m:^\W*{several}(?=[).:\]]|\s*$))",
)
#: A denied letter: after a negation, with at most such words between them; or before "is not" or "is wrong".
_DENIED = (
    r"(?i:(?:\b(?:not|never|cannot|neither|nor|no|none|except|exclud\w+|eliminat\w+|rul\w+\s+out|reject\w*|discard\w*|doubt|rather\s+than|"
    r"instead\s+of|other\s+than|unlike|nicht|non|não|не|pas)\b|n't\b|不是|不选|不選|并非)(?:\s+(?:be|it|it's|its|is|are|the|an?|that|answer|"
    r"correct|right|best|think|say|believe|choose|pick|select|go|with|for|of|to|likely|sure|certain|if|way|both|either|one|es|la|el|le|die|"
    rf"est|ist|è|é|{_OPTION}))*)[ \t]*{{several}}",
    r"{named}(?i:\s+(?:is|are|was|were|can|ca|could|do|does|did|would|wo|should|must|has|have|may|might|seems?|looks?|est|ist)\s*(?:not|never|n't|nicht)\b|"
    r"\s+(?:cannot|never|no\s+es|n'est|non\s+è|não\s+é|не)\b|\s*(?:不是|并非|ではな|가\s*아니))",
    rf"{{named}}(?i:\s*[)\]:\u2013\u2014-]?\s*{_IS}?\s*(?:(?:also|too|both|all|the|an?|la|die|\w+ly)\s+)*{_WRONG})",
)
#: Negative words that deny nothing.
_IDIOMS = {
    r"\b(?:there(?:'s| is)\s+)?(?:no|without(?:\s+an?y?)?)\s+(?:shadow\s+of\s+an?\s+)?(?:doubt|question)\b(?:\s+that\b)?|\bundoubtedly\b": "surely",
    r"\bnot\s+(?:only|just|merely)\b": "",
    r"(?:\bnot\b|n't)\s+(?:wrong|incorrect|false)\b": " correct",
}
_NEGATION = r"\b(?:no|not|none|never|neither|nor|without|cannot|false|incorrect|wrong|untrue|nicht|keine?[nmrs]?|pas|não|нет)\b|n't\b|没|沒|ない|いいえ|없|아니"
_UNSURE = (
    r"\bnot (?:sure|certain|clear)\b|\b(?:unsure|uncertain|unclear|unable|maybe|perhaps|possibly|depends)\b|"
    r"(?:\bdo not|\bcannot|\bcan not|n't) (?:know|tell|say|determine|answer)\b|\bcannot be (?:determined|answered)\b|\b(?:hard|difficult) to\b"
)
_AFFIRMED = (
    r"\bthere(?: is| are|'s)\b|\b(?:contains?|shows?|includes?|depicts?|has|see|visible|present|hay|il y a|es gibt|c'è|há)\b|有|いる|ある|있|"
    r"\b(?:surely|certainly|definitely|absolutely|indeed|of course|correct|true)\b"
)
#: The first word of an answer.
_YES = rf"\A\W*(?:s[iíì]|oui|ja|sim|да|evet|是|对|對|はい|ええ|네|예|हाँ|نعم|ใช่)(?!{_WORD})"
_NO = rf"\A\W*(?:non|nein|nee|nie|hayır|不|否|नहीं|لا|ไม่)(?!{_WORD})"
_REASONING = r"(?:think(?:ing)?|thoughts?|reasoning|analysis)"


def without_reasoning(text: str) -> str:
    """Return what follows the model's reasoning in a text; "" if the reasoning does not end.

    Reasoning ends at the last ``</think>``, ``</thinking>``, ``◁/think▷`` or the like. The opening tag may be missing: templates write it.
    """
    answer = re.split(rf"(?i:</{_REASONING}>|\u25c1/think\u25b7)", text)[-1]
    return re.split(rf"(?i:<{_REASONING}>|\u25c1think\u25b7)", answer)[0]


def robust(extract: Extract) -> Extract:
    """Make an extractor read the final answer: boxed text, else text in answer tags, else the text after the reasoning."""

    @wraps(extract)
    def read(text: str, *known: Sequence[str]) -> str | None:
        text = without_reasoning(text)
        answers = (extract(part, *known) for part in (_boxed(text), _tagged(text), text) if part)
        return next((answer for answer in answers if answer is not None), None)

    return read


@robust
def letter(text: str, options: Sequence[str], choices: Sequence[str] = ()) -> str | None:
    """Return the option that a text names, by our own rule.

    The strongest way of naming decides: a verdict ("the answer is B", "B is right"); a text that begins with the letter; a mark ("(B)", "option
    B", a line of its own); one choice in words and no other word; "B" alone in a sentence, or one choice among other words. Two options in
    the same way contradict each other, and a letter that is denied ("not A", "A is wrong") is not named. Before a word, "A" and "I" are
    English; small letters count only if they are marked or end a clause; no letter is read out of a word.

    Args:
        text: a model's answer, with its reasoning if there is any.
        options: the letters of the options; options of several letters are matched by their choices only.
        choices: the text of each option, in the same order; () if unknown.

    Example:
        >>> letter("It is not A, so the answer must be B.", "ABCD")
        'B'
    """
    letters = "".join(each for each in options if len(each) == 1 and each.isalpha())
    text = _normal(text)
    find = _finder(letters)
    marked = _raised(text, letters)
    for match in [*find(marked, _DENIED)]:
        marked = marked[: match.start(1)] + re.sub(rf"[{letters}]", "~", match[1]) + marked[match.end(1) :]

    def named(patterns: Sequence[str]) -> set[str]:
        return {each for match in find(marked, patterns) for each in match[1] if each in letters}

    for patterns in (_PHRASES, () if _lists(marked, letters) else _START, _MARKS):
        if several := named(patterns):
            return _only(several)
    exact, within = _in_words(text, options, choices)
    alone = named((r"(?:\A\W*|[.,;:!?\n]\s*|(?i:\b" + _BEFORE + r"\s+)){several}",))
    return _only(exact) if exact else _only(alone | within)


@robust
def yes_no(text: str, *_: Sequence[str]) -> str | None:
    """Return "yes" or "no": by the word itself, else by a sentence that affirms or denies. Our own rule.

    "Not sure" and the like are neither, nor are both words at once; "no" before a noun only denies ("there is no dog").
    """
    text = _normal(re.sub(r"[*_`]", "", text)).casefold()
    if re.search(_UNSURE, text):
        return None
    yes = bool(re.search(r"\byes\b", text))
    clause = r"(?:\A|[.,;:!?/\n]|\b(?:and|or|is|be|say|answer)\b)\W*no\b(?=\s*(?:\Z|[^\w\s]|(?:and|or|there|it|the|this|i|because|since)\b))"
    no = bool(re.search(clause, text))
    if yes or no:
        return None if yes and no else "yes" if yes else "no"
    if re.search(rf"{_NEGATION}|{_NO}", text):
        return "no"
    return "yes" if re.search(rf"{_AFFIRMED}|{_YES}", text) else None


@robust
def plain(text: str, *_: Sequence[str]) -> str | None:
    """Return an open answer in its plainest form: lower case, single spaces, no full stop at its end."""
    return " ".join(text.split()).rstrip(" .").casefold() or None


# --- published rules


def first_letter(before: str) -> Extract:
    """Return the rule that takes the first character for the letter, case ignored, after the pattern ``before``: "bottle" is B."""

    def extract(text: str, options: Sequence[str], *_: Sequence[str]) -> str | None:
        match = re.match(rf"(?i:{before})([{''.join(options)}])", text.replace("\n", " ").strip().upper())
        return match[1] if match else None

    return extract


def bare(text: str, options: Sequence[str], *_: Sequence[str]) -> str | None:
    """Return the option if the text is nothing else, case ignored: "Yes." is nothing."""
    text = text.strip().lower()
    return text if text in {option.lower() for option in options} else None


def no_or_else_yes(text: str, *_: Sequence[str]) -> str | None:
    """Return "no" if "No", "no" or "not" occurs before the first full stop, else "yes": "I cannot tell." is yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


# --- inside


def _boxed(text: str) -> str:
    r"""Return the content of the last ``\boxed{...}`` or ``<|begin_of_box|>...<|end_of_box|>``, "" if there is none."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return _last(r"<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|\Z)", text)
    depth, begin = 0, start + len(r"\boxed")
    for end in range(begin, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if not depth:
            return text[begin + 1 : end]
    return text[begin + 1 :]


def _tagged(text: str) -> str:
    return _last(r"<answer>(.*?)(?:</answer>|\Z)", text)


def _last(pattern: str, text: str) -> str:
    matches = re.findall(f"(?is:{pattern})", text)
    return matches[-1].strip() if matches else ""


def _normal(text: str) -> str:
    """Return the text with plain apostrophes, letters and punctuation, and without idioms whose negative words deny nothing."""
    text = normalize("NFKC", text).translate({0x2019: "'", 0x3002: ". ", 0x3001: ", "})
    for idiom, instead in _IDIOMS.items():
        text = re.sub(f"(?i:{idiom})", instead, text)
    return text


def _raised(text: str, letters: str) -> str:
    """Return the text without markup, with capitals for small letters that are marked or end a clause after "answer" and the like."""
    text = re.sub(r"\\(?:text|mathrm|mathbf)\b|[*_`$\\{}]|</?\w+>", " ", text).strip()
    small = f"[{letters.lower()}]" if letters else r"[^\s\S]"
    for pattern in (
        rf"\A\W*{small}\W*\Z",
        rf"\(\s*{small}\s*\)",
        rf"\A\W*{small}(?=[).:](?:\s|\Z))",
        rf"\b(?i:answer|is|es|est|ist|è|é|{_OPTION}|{_ANSWER}):?\s+{small}(?=\s*(?:\Z|[.,;:!)\n]))",
    ):
        text = re.sub(pattern, lambda match: re.sub(rf"\b{small}\b", lambda one: one[0].upper(), match[0]), text)
    return text


def _lists(text: str, letters: str) -> bool:
    """Return whether a text begins with a list of the options."""
    return bool(re.match(rf"(?s)\W*{letters[:1]}[).:].*\s\W*{letters[1:2]}[).:]", text))


def _finder(letters: str) -> Callable[[str, Sequence[str]], Iterator[re.Match[str]]]:
    """Return a search for patterns with ``{one}``, ``{several}`` ("A", "A or B") or ``{named}`` ("option A"); group 1 is the letters."""
    one = rf"(?<!{_WORD})(?<!['-])[{letters}](?!{_WORD}|'|-\w)(?!(?<=[AI])[ \t]+(?!{_AFTER})[A-Za-z])"
    one = one if letters else r"[^\s\S]"
    marked = rf"[(\[\"']?{one}[)\]\"']?"
    joint = r"(?:,|/|&|\b(?:or|and|nor|o|ou|oder|y|et|und|или)\b|或|和|と|또는)"
    several = rf"({marked}(?:\s*{joint}\s*(?:maybe\s+|perhaps\s+|possibly\s+)?{marked}){{0,25}})"
    named = rf"(?:(?i:(?:the\s+)?{_OPTION})\s*:?\s*)?{several}"

    def find(text: str, patterns: Sequence[str]) -> Iterator[re.Match[str]]:
        return (
            match
            for each in patterns
            for match in re.finditer(each.format(one=one, several=several, named=named), text)
        )

    return find


def _in_words(text: str, options: Sequence[str], choices: Sequence[str]) -> tuple[set[str], set[str]]:
    """Return the options whose choice is the whole text, and those whose choice is part of it and not of a longer choice there."""
    words = _words(text)
    known = [(option, _words(choice)) for option, choice in zip(options, choices, strict=False)]
    known = [(option, choice) for option, choice in known if choice and choice != ["nan"]]
    exact = {option for option, choice in known if choice == words}
    if re.search(_NEGATION, text.casefold()):
        return exact, set()
    spans = [
        (option, start, start + len(choice))
        for option, choice in known
        for start in range(len(words) - len(choice) + 1)
        if words[start : start + len(choice)] == choice
    ]
    longest = {
        option
        for option, start, end in spans
        if not any(a <= start and end <= b and b - a > end - start for _, a, b in spans)
    }
    return exact, longest


def _words(text: str) -> list[str]:
    words = re.findall(r"(?<!\w)-?\d+(?:[.,]\d+)*|\w+", normalize("NFKC", text).casefold())
    return [word for word in words if word not in ("a", "an", "the")]


def _only(several: set[str]) -> str | None:
    return next(iter(several)) if len(several) == 1 else None
