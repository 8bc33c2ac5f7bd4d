# ruff: noqa: RUF001 (full-width letters and punctuation are what is tested)
"""Letters, yes and no read from free text, by our rules and by the published ones."""

import re
import string
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkgate.benchmarks import Item, benchmark
from sinkgate.benchmarks.extraction import letter, yes_no

ABCD = ("A", "B", "C", "D")
ABC_TO_I = tuple("ABCDEFGHI")
ANIMALS = ("cat", "dog", "a bottle", "hot dog")
NUMBERS = ("0", "1", "2", "2.5")


@pytest.mark.parametrize(
    ("text", "expected"),
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
def test_letters(text, expected):
    assert letter(text, ABCD) == expected


@pytest.mark.parametrize("text", ["I think so", "I don't know", "I see a dog", "I would say B", "I'm sure it's B"])
def test_i_is_a_word_before_it_is_a_letter(text):
    assert letter(text, ABC_TO_I) == ("B" if "B" in text else None)
    assert letter("I", ABC_TO_I) == letter("The answer is I.", ABC_TO_I) == letter("I is right", ABC_TO_I) == "I"


@pytest.mark.parametrize(
    ("text", "choices", "expected"),
    [
        ("dog", ANIMALS, "B"), ("A dog.", ANIMALS, "B"), ("a bottle", ANIMALS, "C"), ("Bottle", ANIMALS, "C"), ("hot dog", ANIMALS, "D"), ("It is a hot dog.", ANIMALS, "D"), ("A cat", ANIMALS, "A"), ("The answer is a dog", ANIMALS, "B"),
        ("cat and dog", ANIMALS, None), ("dogs", ANIMALS, None), ("It is not a cat.", ANIMALS, None), ("a dog and a hot dog", ANIMALS, None), ("C dog", ANIMALS, None), ("B. cat", ANIMALS, "B"), ("nan", ("cat", "dog", "nan", "nan"), None),
        ("2", NUMBERS, "C"), ("There are 2.", NUMBERS, "C"), ("2.5 m", NUMBERS, "D"), ("1 or 2", NUMBERS, None), ("12", NUMBERS, None), ("same", ("same", "same"), None), ("D", ("C", "D"), "D"), ("no", ("yes", "no"), "B"),
    ],
)  # fmt: skip
def test_choices_in_words(text, choices, expected):
    assert letter(text, ABCD, choices) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"), ("NO", "no"), ("no.", "no"), ("**No**", "no"), ("Yes, there is", "yes"), ("No, there is not", "no"), ("No, it is a cat.", "no"), ("Yes it is", "yes"), ("No there isn't", "no"), ("The answer is no", "no"), ("Answer: yes", "yes"),
        ("There is no dog", "no"), ("No dog", "no"), ("There isn\u2019t a dog", "no"), ("The image does not contain a dog", "no"), ("There is a dog in the image.", "yes"), ("I can see a dog", "yes"), ("Yes, there is no doubt.", "yes"),
        ("not sure", None), ("I don't know", None), ("I cannot tell.", None), ("it's hard to say", None), ("Maybe", None), ("yes or no", None), ("Yes. No.", None), ("Yes and no", None), ("", None), ("eyes", None), ("nose", None), ("a cat", None),
    ],
)  # fmt: skip
def test_yes_and_no(text, expected):
    assert yes_no(text) == expected


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>Option A: a red car. Option B: a blue bus.</think><answer>B</answer>", "B"), ("<think>A</think>\n\nC", "C"), ("so A is right</think>The answer is D.", "D"), ("◁think▷A?◁/think▷B", "B"),
        ("<think>one: A</think> <think>two: B</think> C", "C"), ("<think>the answer is A", None), ("<think>A</think>", None), ("<thinking>A</thinking>B", "B"), (r"A would be red. $$\boxed{B}$$", "B"), (r"\boxed{A}, no: \boxed{\text{(C)}}", "C"),
        (r"<answer>\boxed{D}</answer>", "D"), ("<|begin_of_box|>B<|end_of_box|>", "B"), ("A and B are there. <answer> B. dog </answer>", "B"), ("<answer>A</answer> or <answer>C", "C"), (r"B\boxed{", "B"),
    ],
)  # fmt: skip
def test_the_answer_of_a_thinking_model_is_read_behind_its_reasoning(text, answer):
    assert letter(text, ABCD) == answer


def test_reasoning_is_skipped_whatever_reads_the_rest():
    (item,) = benchmark("scenes").items(limit=1)
    for name in ("mmstar", "cvbench"):
        for rule in benchmark(name).extractors:
            choice = Item(replace(item.sample, options=ABCD), "0", {})
            assert benchmark(name).read(choice, "<think>Could it be A?</think>\nB", rule) == "B"
    yes = Item(replace(item.sample, options=("Yes", "No")), "0", {})
    assert [
        benchmark("pope").read(yes, "<think>no dog?</think>Yes", rule) for rule in benchmark("pope").extractors
    ] == ["yes"] * 3
    assert benchmark("scenes").read(item, "<think>blue?</think> Red.") == "red"
    assert yes_no("<think>yes it is</think>No") == yes_no(r"\boxed{no}") == yes_no("<answer>No</answer>") == "no"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("A is incorrect.", None), ("B is not the answer", None), ("It can't be B.", None), ("A isn't right", None), ("There's no way it's B", None), ("I don't think it is B.", None), ("I doubt it's B.", None),
        ("B can be excluded", None), ("Option B is unlikely.", None), ("C is never right", None), ("Not B", None), ("None of A, B, C", None), ("The answer isn't B", None), ("B cannot be it", None),
        ("It is not A, so it must be B.", "B"), ("The answer is not A but B", "B"), ("B, not A", "B"), ("B not A", "B"), ("B rather than A", "B"), ("A is wrong. B is wrong. C is right.", "C"), ("A: wrong. B: correct", "B"),
        ("Eliminate A and B. The answer is C", "C"), ("I'd rule out A, so B", "B"), ("Instead of A, choose C", "C"), ("The correct answer is not A, it is C", "C"), ("A, B and C are all incorrect, so D", "D"), ("C won't work, B does", "B"),
        ("A is not correct, B is.", "B"), ("No doubt, B", "B"), ("There is no doubt that the answer is B.", "B"), ("Without a doubt B.", "B"), ("B is not wrong", "B"), ("It is B, no question.", "B"),
    ],
)  # fmt: skip
def test_a_letter_that_is_denied_is_not_the_answer(text, answer):
    assert letter(text, ABCD) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("选B", "B"), ("答案是B。", "B"), ("答案：C", "C"), ("正确答案是（Ｄ）", "D"), ("应该选择B，因为", "B"), ("选项B正确", "B"), ("B是正确的", "B"), ("故选：C", "C"), ("不是A", None), ("不选A，选B", "B"), ("B不对", None), ("B或C", None), ("维生素C", None),
        ("La respuesta es B", "B"), ("La respuesta correcta es la B.", "B"), ("la respuesta es la opción C", "C"), ("Respuesta: b", "B"), ("La opción B es la correcta", "B"), ("No es A", None), ("La respuesta no es A", None), ("B no es correcta", None), ("A o B", None),
        ("La bonne réponse est B", "B"), ("Réponse : C", "C"), ("La réponse est la C.", "C"), ("Ce n'est pas B", None), ("Die richtige Antwort ist C", "C"), ("Die Antwort lautet B.", "B"), ("Antwort: A", "A"), ("B ist richtig", "B"), ("B ist falsch", None), ("Es ist nicht B", None),
        ("La risposta corretta è B", "B"), ("A resposta correta é B", "B"), ("A resposta é a letra C", "C"), ("Resposta: alternativa D", "D"), ("Ответ: B", "B"), ("Правильный ответ — C", "C"), ("Het juiste antwoord is B", "B"), ("Poprawna odpowiedź to B", "B"), ("Cevap: B", "B"),
        ("答えはBです", "B"), ("正解はCです。", "C"), ("정답은 B입니다", "B"), ("정답: D", "D"), ("Đáp án đúng là B", "B"), ("Jawabannya adalah C", "C"), ("الإجابة الصحيحة هي B", "B"), ("सही उत्तर B है", "B"), ("คำตอบคือ C", "C"),
    ],
)  # fmt: skip
def test_letters_in_other_languages(text, answer):
    assert letter(text, ABCD) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("There is no doubt a dog is there", "yes"), ("No doubt.", "yes"), ("Without a doubt, there is a dog", "yes"), ("Undoubtedly", "yes"), ("Not only is there a dog, there is a cat", "yes"), ("Certainly.", "yes"), ("Certainly not.", "no"), ("Correct", "yes"),
        ("That is incorrect.", "no"), ("False", "no"), ("It's not true", "no"), ("Sí", "yes"), ("Sí, hay un perro", "yes"), ("No hay ningún perro", "no"), ("Oui.", "yes"), ("Non", "no"), ("Il n'y a pas de chien", "no"), ("Ja", "yes"), ("Nein, da ist kein Hund", "no"),
        ("Sim", "yes"), ("Não", "no"), ("Да", "yes"), ("Нет", "no"), ("是的", "yes"), ("有", "yes"), ("没有", "no"), ("不是", "no"), ("はい", "yes"), ("いいえ", "no"), ("네", "yes"), ("아니요", "no"),
    ],
)  # fmt: skip
def test_yes_and_no_without_the_plain_word(text, answer):
    assert yes_no(text) == answer


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


#: Words that are no answer: the small ones that a sentence is built with, in the languages that ``letter`` reads.
SMALL = re.findall(
    r"\w+", "or and nor but rather is was because since as no not none never nan an the ou oder und et es est ist"
)
WORDS = st.text(string.ascii_lowercase, min_size=2, max_size=9).filter(lambda word: word not in SMALL)


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
def test_a_choice_said_in_words_is_its_letter(words, index):
    assert letter(words[index], ABCD, words) == ABCD[index]
    assert letter(f"A {words[index]}.", ABCD, words) == ABCD[index]


@settings(deadline=None)
@given(st.sampled_from(["yes", "no"]), st.sampled_from(["{}", "{}.", "**{}**", "{}, it is so", "The answer is {}.", '"{}"', "{}\nBecause"]), st.booleans())  # fmt: skip
def test_yes_and_no_in_every_way(word, way, upper):
    text = way.format(word)
    assert yes_no(text.upper() if upper else text) == word


# --- published rules, against plain readings of their definition


def mmstar_rule(text):
    """lmms-eval up to 0.7.1: which letter would have been counted right."""
    reply = text.lower().replace("\n", " ").strip()
    for one in "abcd":
        if reply[:1] == one or (reply[:1] == "(" and reply[1:2] == one):
            return one.upper()
        if any(reply.startswith(words) and reply[len(words) :][:1] == one for words in ("option ", "the answer is ")):
            return one.upper()
    return None


def cvbench_rule(text):
    reply = text.strip()
    while reply and (reply[0] == "(" or reply[0].isspace()):
        reply = reply[1:]
    return reply[0].upper() if reply and reply[0] in "abcdABCD" else None


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
