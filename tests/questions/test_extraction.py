"""What was said: letters, yes and no read from free text, by our rules and by the published ones."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkgate.benchmarks import benchmark
from sinkgate.benchmarks.extraction import letter, yes_no

ABCD = ("A", "B", "C", "D")
ABC_TO_I = tuple("ABCDEFGHI")
ANIMALS = ("cat", "dog", "a bottle", "hot dog")
NUMBERS = ("0", "1", "2", "2.5")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        # a text that is the letter, or begins with it
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("(b)", "B"), ("B.", "B"), ("B)", "B"), ("b. dog", "B"), ("B: text", "B"), ("B - dog", "B"), ("**B**", "B"), ("“B”", "B"), ("[C]", "C"), ("A", "A"),
        ("A.", "A"), ("A\n\nThe cat is on the left.", "A"), ("C (dog)", "C"), ("Option B", "B"), ("B, because A is wrong", "B"), ("B. Option A is wrong, and option C too.", "B"), ("A and that is sure", "A"),
        # verdicts
        ("The answer is B", "B"), ("the answer is b.", "B"), ("Answer: (C)", "C"), ("Answer: c", "C"), ("The best answer is: B", "B"), ("The correct option is (D) because of the cat", "D"),
        ("option C is right", "C"), ("A is correct", "A"), ("I choose option D.", "D"), ("The answer to the question is D.", "D"), ("(A) is wrong, (B) is right", "B"), ("The answer is most likely B.", "B"),
        ("A. cat\nB. dog\nThe answer is B.", "B"), (r"So it is $\boxed{\text{C}}$.", "C"), ("<answer>D</answer>", "D"), ("**Answer: B**", "B"),
        # alone in a sentence
        ("It's B", "B"), ("I think B", "B"), ("Definitely C!", "C"), ("Because it is red.\nB", "B"), ("I would say (a).", "A"),
        # no letters at all
        ("", None), ("bottle", None), ("Bottle", None), ("A dog is there.", None), ("the answer is a dog", None), ("vitamin C", None), ("A-frame", None), ("ABCD", None), ("E", None), ("Delta", None),
        ("I don't know.", None), ("D'Artagnan", None), ("It costs 5 dollars.", None),
        # contradictions and denials
        ("A or B", None), ("A and B", None), ("A/B", None), ("B or maybe C", None), ("the answer is A or B", None), ("either A or B", None), ("Neither A nor B is correct", None), ("The answer is not A", None), ("I would not choose A.", None),
        ("A. cat\nB. dog", None), ("(A) (B)", None), ("(A) cat (B) dog", None), ("It is B. It is C.", None),
    ],
)  # fmt: skip
def test_letters(text, said):
    assert letter(text, ABCD) == said


@pytest.mark.parametrize("text", ["I think so", "I don't know", "I see a dog", "I would say B", "I'm sure it's B"])
def test_i_is_a_word_before_it_is_a_letter(text):
    assert letter(text, ABC_TO_I) == ("B" if "B" in text else None)
    assert letter("I", ABC_TO_I) == letter("The answer is I.", ABC_TO_I) == letter("I is right", ABC_TO_I) == "I"


@pytest.mark.parametrize(
    ("text", "choices", "said"),
    [
        ("dog", ANIMALS, "B"), ("A dog.", ANIMALS, "B"), ("a bottle", ANIMALS, "C"), ("Bottle", ANIMALS, "C"), ("hot dog", ANIMALS, "D"), ("It is a hot dog.", ANIMALS, "D"), ("A cat", ANIMALS, "A"), ("The answer is a dog", ANIMALS, "B"),
        ("cat and dog", ANIMALS, None), ("dogs", ANIMALS, None), ("It is not a cat.", ANIMALS, None), ("a dog and a hot dog", ANIMALS, None), ("C dog", ANIMALS, None), ("B. cat", ANIMALS, "B"), ("nan", ("cat", "dog", "nan", "nan"), None),
        ("2", NUMBERS, "C"), ("There are 2.", NUMBERS, "C"), ("2.5 m", NUMBERS, "D"), ("1 or 2", NUMBERS, None), ("12", NUMBERS, None), ("same", ("same", "same"), None), ("D", ("C", "D"), "D"), ("no", ("yes", "no"), "B"),
    ],
)  # fmt: skip
def test_choices_in_words(text, choices, said):
    assert letter(text, ABCD, choices) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"), ("NO", "no"), ("no.", "no"), ("**No**", "no"), ("Yes, there is", "yes"), ("No, there is not", "no"), ("No, it is a cat.", "no"), ("Yes it is", "yes"), ("No there isn't", "no"), ("The answer is no", "no"), ("Answer: yes", "yes"),
        ("There is no dog", "no"), ("No dog", "no"), ("There isn\u2019t a dog", "no"), ("The image does not contain a dog", "no"), ("There is a dog in the image.", "yes"), ("I can see a dog", "yes"), ("Yes, there is no doubt.", "yes"),
        ("not sure", None), ("I don't know", None), ("I cannot tell.", None), ("it's hard to say", None), ("Maybe", None), ("yes or no", None), ("Yes. No.", None), ("Yes and no", None), ("", None), ("eyes", None), ("nose", None), ("a cat", None),
    ],
)  # fmt: skip
def test_yes_and_no(text, said):
    assert yes_no(text) == said


WAYS = [
    "{}", "({})", "{}.", "{}:", " {} ", "**{}**", "The answer is {}", "the answer is ({}).", "Answer: {}", "option {} is right", "{} is correct", "I choose {}.", "It's {}", "So, {}.", "\\boxed{{{}}}", "The picture is dark.\n{}", "{}, because it fits",
]  # fmt: skip


@settings(deadline=None)
@given(st.sampled_from(ABC_TO_I), st.sampled_from(WAYS))
def test_every_letter_said_in_every_way(one, way):
    assert letter(way.format(one), ABC_TO_I) == one


@settings(deadline=None)
@given(st.sampled_from(ABCD), st.sampled_from(ABCD), st.sampled_from(["{} or {}", "{} and {}", "{}/{}", "{}, {}", "The answer is {} or {}.", "either {} or {}", "It is {}. It is {}."]))  # fmt: skip
def test_two_letters_in_one_way_contradict_each_other(one, other, way):
    assert letter(way.format(one, other), ABCD) == (one if one == other else None)


#: Words that are nobody's answer: the small ones that a sentence is built with mean something of their own.
WORDS = st.text(string.ascii_lowercase, min_size=2, max_size=9).filter(
    lambda word: (
        word
        not in [
            "or",
            "and",
            "nor",
            "but",
            "is",
            "was",
            "because",
            "since",
            "as",
            "no",
            "not",
            "none",
            "never",
            "nan",
            "an",
            "the",
        ]
    )
)


@settings(deadline=None)
@given(WORDS, st.sampled_from(["{}", "{}.", "A {} is there.", "It is {}.", "the {} on the left"]))  # fmt: skip
def test_no_letter_is_read_out_of_a_word(word, way):
    assert letter(way.format(word), ABCD) is None
    assert letter(way.format(word.title()).replace("A ", "The "), ABCD) is None


@settings(deadline=None)
@given(st.text(max_size=60), st.lists(st.text(max_size=12), max_size=4))
def test_any_text_gives_an_option_or_nothing(text, choices):
    assert letter(text, ABCD, choices) in (*ABCD, None)
    assert yes_no(text) in ("yes", "no", None)
    for name in ("mmstar", "cvbench", "pope"):
        for rule in benchmark(name).extractors.values():
            options = ("yes", "no") if name == "pope" else ABCD
            assert rule(text, options, choices) in (*options, None)


@settings(deadline=None)
@given(st.lists(WORDS, min_size=4, max_size=4, unique=True), st.integers(0, 3))  # fmt: skip
def test_a_choice_said_in_words_is_its_letter(words, place):
    assert letter(words[place], ABCD, words) == ABCD[place]
    assert letter(f"A {words[place]}.", ABCD, words) == ABCD[place]


@settings(deadline=None)
@given(st.sampled_from(["yes", "no"]), st.sampled_from(["{}", "{}.", "**{}**", "{}, it is so", "The answer is {}.", '"{}"', "{}\nBecause"]), st.booleans())  # fmt: skip
def test_yes_and_no_in_every_way(word, way, upper):
    said = way.format(word)
    assert yes_no(said.upper() if upper else said) == word


# --- published rules, against plain readings of their definition


def mmstar_rule(text):
    """lmms-eval up to 0.7.1: which letter would have been counted right."""
    told = text.lower().replace("\n", " ").strip()
    for one in "abcd":
        if told[:1] == one or (told[:1] == "(" and told[1:2] == one):
            return one.upper()
        if any(told.startswith(words) and told[len(words) :][:1] == one for words in ("option ", "the answer is ")):
            return one.upper()
    return None


def cvbench_rule(text):
    told = text.strip()
    while told and (told[0] == "(" or told[0].isspace()):
        told = told[1:]
    return told[0].upper() if told and told[0] in "abcdABCD" else None


TEXTS = st.one_of(
    st.text(max_size=20),
    st.builds("{}{}{}".format, st.sampled_from(["", "(", "( ", "((", "option ", "Option (", "The answer is ", "answer ", "\n"]), st.sampled_from("ABCDEabcdeT"), st.sampled_from(["", ")", ".", "ottle", " dog"])),
)  # fmt: skip


@settings(deadline=None)
@given(TEXTS)
def test_lmms_evals_rules(text):
    for name, rule in {"mmstar": mmstar_rule, "cvbench": cvbench_rule}.items():
        assert benchmark(name).extractors["lmms-eval"](text, ABCD, ()) == rule(text)


def test_what_the_published_rules_are_known_for():
    for name in ("mmstar", "cvbench"):
        assert benchmark(name).extractors["lmms-eval"]("bottle", ABCD, ()) == "B"
        assert benchmark(name).extractors["robust"]("bottle", ABCD, ()) is None
    pope = benchmark("pope").extractors
    assert [rule("Yes.", ("yes", "no"), ()) for rule in pope.values()] == ["yes", None, "yes"]
    assert [rule("I cannot tell.", ("yes", "no"), ()) for rule in pope.values()] == [None, None, "yes"]
    assert [rule("There is not. Yes", ("yes", "no"), ()) for rule in pope.values()][2] == "no"
    assert list(pope) == ["robust", "lmms-eval", "official"]
