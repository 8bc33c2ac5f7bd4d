"""Prompts are transformers' own, and answers are what a model writes behind them, for the traits of published templates."""

import itertools
from types import SimpleNamespace

import chat_cases as cases
import pytest
import torch
from chat_cases import BLANK, CHATML, EOS, IMAGE, OPENED, TEMPLATES, TEXT_ONLY, THOUGHT, TOKENIZERS, vlm_with
from hypothesis import given
from hypothesis import strategies as st
from tiny import noise_image, some_sinks
from zoo import ZOO

import sinkgate as sg
from sinkgate.methods import Fixed
from sinkgate.models.describe import describe, greedy_answer
from sinkgate.models.vlm import VLM
from sinkgate.training.dataset import ExampleCache, Prefix, batches

QUESTION = "What is in the picture?\nIt's “nice”."
ENDS = {
    "chatml": "<|im_end|>",
    "thought": "<|im_end|>",
    "opened": "<|im_end|>",
    "dropped": "<|im_end|>",
    "first": "<|im_end|>",
    "listed": "<|user|>",
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def pieces(vlm, answer, question=QUESTION):
    prompt = vlm.prompt(noise_image(), question)
    return vlm.tokenizer.convert_ids_to_tokens(vlm.encode_answer(prompt, answer))


def written(vlm, answer):
    """An answer's pieces in one text, a blank as both kinds of tokenizers read it."""
    return "".join(pieces(vlm, answer)).replace("Ġ", "▁").replace("Ċ", "\n").replace("<0x0A>", "\n")


# --- prompts


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompts_are_those_of_transformers(tokenizer, template):
    vlm = vlm_with(tokenizer, TEMPLATES[template])
    for images, system in itertools.product([1] if template == "first" else [1, 2], ["", "Answer with one word."]):
        pictures = [noise_image(number, (40, 28 + number)) for number in range(images)]
        if system and template == "questions":
            with pytest.raises(sg.PromptError, match="prints no system turn; put its text into the question"):
                vlm.prompt(pictures, QUESTION, system=system)
            continue
        content = [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": QUESTION}]
        text = system if template == "listed" else [{"type": "text", "text": system}]
        chat = [{"role": "system", "content": text}] if system else []
        expected = vlm.processor.apply_chat_template(
            [*chat, {"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        prompt = vlm.prompt(pictures, QUESTION, system=system)
        assert prompt.inputs.keys() == expected.keys() and prompt.system == system
        assert all(torch.equal(prompt.inputs[name], value) for name, value in expected.items())
        assert tokenizer.decode(prompt.inputs["input_ids"][0]).count(cases.BOS) <= 1


EARLIER = [("How many\nare there?", "two dogs"), ("Why?", "a cat and “yes”")]


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("template", TEMPLATES)
def test_several_turns_are_those_of_transformers(tokenizer, template, system):
    vlm, picture = vlm_with(tokenizer, TEMPLATES[template]), noise_image()
    if template == "questions":
        with pytest.raises(sg.PromptError, match="prints no earlier turns; put what matters of them into the question"):
            vlm.prompt(picture, QUESTION, earlier=EARLIER)
        return
    text = (lambda words: words) if template == "listed" else (lambda words: [{"type": "text", "text": words}])
    chat = [{"role": "system", "content": text(system)}] if system else []
    for number, (question, answer) in enumerate([*EARLIER, (QUESTION, None)]):
        image = [{"type": "image", "image": picture}] if number == 0 else []
        chat.append({"role": "user", "content": [*image, {"type": "text", "text": question}]})
        chat += [{"role": "assistant", "content": text(answer)}] if answer else []
    expected = vlm.processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    prompt = vlm.prompt(picture, QUESTION, earlier=EARLIER, system=system)
    assert prompt.inputs.keys() == expected.keys() and prompt.earlier == tuple(EARLIER) and prompt.question == QUESTION
    assert all(torch.equal(prompt.inputs[name], value) for name, value in expected.items())


def test_images_stand_where_turns_say(tokenizer):
    vlm = vlm_with(tokenizer, CHATML)
    pictures = [noise_image(1), noise_image(2, (30, 28))]
    asides = [(["Look: ", None], "yes")]
    prompt = vlm.prompt(pictures, [None, "two dogs"], earlier=asides)
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image", "image": pictures[0]}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": [{"type": "image", "image": pictures[1]}, {"type": "text", "text": "two dogs"}]},
    ]
    expected = vlm.processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert all(torch.equal(prompt.inputs[name], value) for name, value in expected.items())
    assert prompt.earlier == (("Look: ", "yes"),)
    assert len(vlm.prompt(pictures, "two dogs", earlier=asides[:0]).visual) == 32
    sample = sg.Sample(tuple(pictures), "<image>two dogs", "yes", earlier=(("Look: <image>", "yes"),))
    same = vlm.prompt(sample.images, sample.parts, earlier=sample.turns)
    assert torch.equal(same.inputs["input_ids"], prompt.inputs["input_ids"])


@pytest.mark.parametrize(
    ("earlier", "message"),
    [
        ("Why?", "the earlier turns are a str; expected pairs"),
        (None, "the earlier turns are a NoneType"),
        (["Why?"], "earlier turn 1 is 'Why\\?'; expected a question and its answer"),
        ([("Why?", "so"), ("Why?",)], r"earlier turn 2 is \('Why\?',\)"),
        ([("Why?", 2)], r"earlier turn 1 is \('Why\?', 2\)"),
        ([(" ", "so")], "the question is empty"),
        ([("Why?", " ")], "an earlier answer is empty; leave its question out"),
        ([("Why?", EOS)], "the earlier answer holds </s>"),
        ([("Why? " + IMAGE, "so")], "the question holds <image>"),
        ([([None, "Why?", None], "so")], "the questions have 2 places for images; expected 1"),
        ([(["Why?"], "so")], "the questions have 0 places for images; expected 1"),
        ([("wh\ud83dy", "so")], "the question holds half a character"),
    ],
)
def test_turns_that_are_none_get_a_sentence(tokenizer, earlier, message):
    with pytest.raises(sg.PromptError, match=message):
        vlm_with(tokenizer, CHATML).prompt(noise_image(), QUESTION, earlier=earlier)


def test_a_model_that_takes_one_turn_says_so(tokenizer):
    with pytest.raises(sg.PromptError, match="no chat template, so no earlier turns"):
        vlm_with(tokenizer, None).prompt(noise_image(), QUESTION, earlier=EARLIER)
    newest = "{% for m in messages[-1:] %}" + CHATML.partition("%}")[2]
    with pytest.raises(sg.PromptError, match="prints no earlier turns"):
        vlm_with(tokenizer, newest).prompt(noise_image(), QUESTION, earlier=EARLIER)
    two = "{% if messages|length > 3 %}{{ raise_exception('two questions at most') }}{% endif %}" + CHATML
    vlm = vlm_with(tokenizer, two)
    assert vlm.prompt(noise_image(), QUESTION, earlier=EARLIER[:1]).earlier == tuple(EARLIER[:1])
    with pytest.raises(sg.PromptError, match="refuses a conversation of 3 questions: two questions at most"):
        vlm.prompt(noise_image(), QUESTION, earlier=EARLIER)


def test_a_template_of_the_tokenizer_alone_is_used(tokenizer):
    tokenizer.chat_template = CHATML
    try:
        vlm = vlm_with(tokenizer, None)
        prompt = vlm.prompt(noise_image(), QUESTION)
        content = [{"type": "image", "image": noise_image()}, {"type": "text", "text": QUESTION}]
        expected = vlm.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=CHATML,
            add_generation_prompt=True,
            tokenize=True,
            return_tensors="pt",
        )
        assert torch.equal(prompt.inputs["input_ids"], expected)
        assert describe(vlm, prompt)["chat_format"] == "chat template of the tokenizer"
        assert written(vlm, "yes") == "yes" + EOS
    finally:
        tokenizer.chat_template = None


def test_the_form_in_use_is_described(tokenizer):
    for template, words in (
        (CHATML, "of the processor"),
        ({"default": CHATML}, "of the processor"),
        (None, "'USER: {image}"),
    ):
        vlm = vlm_with(tokenizer, template)
        assert words in str(describe(vlm, vlm.prompt(noise_image(), QUESTION))["chat_format"])


def test_templates_that_take_texts_only_get_texts(tokenizer):
    """LLMs' templates, which cannot place an image: its token is written into the text."""
    vlm = vlm_with(tokenizer, TEXT_ONLY)
    prompt = vlm.prompt([noise_image(1), noise_image(2)], "Why?")
    assert len(prompt.visual) == 32
    words = tokenizer.decode(prompt.inputs["input_ids"][0]).replace(IMAGE, "")
    assert words.split() == ["<s>", "[INST]", "Why?", "[/INST]"] or words.split() == ["<s>[INST]", "Why?", "[/INST]"]
    assert written(vlm, "yes") == "▁yes" + EOS
    with pytest.raises(sg.PromptError, match="no system turn"):
        vlm.prompt(noise_image(), "Why?", system="Be brief.")


def test_a_template_without_questions_is_refused(tokenizer):
    vlm = vlm_with(tokenizer, "Hello")
    with pytest.raises(sg.PromptError, match="prints no user turn; load the model's own processor"):
        vlm.prompt(noise_image(), "Why?")
    with pytest.raises(sg.PromptError, match="no chat template, so no system turn"):
        vlm_with(tokenizer, None).prompt(noise_image(), "Why?", system="Be brief.")


# --- answers

ANSWERS = {
    "blank": "▁two▁dogs",
    "bos": "▁two▁dogs",
    "chatml": "two▁dogs",
    "listed": "two▁dogs",
    "first": "two▁dogs",
    "thought": "<think>\n\n</think>\n\ntwo▁dogs",
    "opened": "\n</think>\n\ntwo▁dogs",
    "dropped": "\n</think>\n\ntwo▁dogs",
    "questions": "▁two▁dogs",
    None: "▁two▁dogs",
}


@pytest.mark.parametrize("template", ANSWERS)
def test_answers_are_continuations_up_to_their_end(tokenizer, template):
    """Nothing between answer and end, what stands in front of it kept, and the end that the template writes."""
    end = ENDS.get(template, EOS)
    vlm = vlm_with(tokenizer, template and TEMPLATES[template], ends=(EOS, "<|im_end|>", "<|user|>"))
    assert written(vlm, " two dogs \n") == ANSWERS[template] + end
    prompt = vlm.prompt(noise_image(), QUESTION)
    ids = torch.cat([prompt.inputs["input_ids"][0], torch.tensor(vlm.encode_answer(prompt, "two dogs"))])
    assert tokenizer.decode(ids).endswith(ANSWERS[template].replace("▁", " ") + end)


@pytest.mark.parametrize("template", ["blank", "chatml", "thought", None])
def test_line_breaks_of_an_answer_stay(tokenizer, template):
    vlm = vlm_with(tokenizer, template and TEMPLATES[template])
    assert "first▁line\nsecond▁line" in written(vlm, "first line\nsecond line")


@pytest.mark.parametrize(
    ("template", "answer", "expected"),
    [
        (THOUGHT, "<think>\nwhy\n</think>\n\nyes", "<think>\nwhy\n</think>\n\nyes"),
        (OPENED, "<think>\nwhy\n</think>\n\nyes", "why\n</think>\n\nyes"),
        (BLANK, "<think>why</think>yes", "▁<think>why</think>yes"),
    ],
)
def test_answers_with_a_thought_of_their_own_keep_it(tokenizer, template, answer, expected):
    assert written(vlm_with(tokenizer, template), answer) == expected + EOS


def test_a_blank_at_the_end_of_the_prompt_is_not_written_twice(tokenizer):
    vlm = vlm_with(tokenizer, BLANK.replace("ASSISTANT:", "ASSISTANT: "))
    assert written(vlm, "two dogs") == "two▁dogs" + EOS


@given(text=st.text(st.sampled_from("two dogs.\n,?é木👍'"), min_size=1, max_size=20).filter(str.strip))
@pytest.mark.parametrize("template", ["blank", "chatml", "opened", None])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_what_an_answer_encodes_to_decodes_to_it(vlms, kind, template, text):
    """And is encoded to the same ids again, as the text of a model's own answer is."""
    vlm = vlms[kind, template]
    chat = vlm.prompter.chat
    ids = chat.encode_answer("Why?", text)
    decoded = vlm.tokenizer.decode(ids, skip_special_tokens=True)
    decoded = decoded.removeprefix(chat.answer_form.before) if "</think>" in decoded else decoded
    assert decoded.strip() == text.strip()
    assert chat.encode_answer("Why?", decoded) == ids


@pytest.fixture(scope="module")
def vlms():
    names = ["blank", "chatml", "opened", None]
    return {(k, t): vlm_with(make(), t and TEMPLATES[t]) for k, make in TOKENIZERS.items() for t in names}


# --- what cannot be encoded


@pytest.mark.parametrize("token", [EOS, IMAGE, "<|im_start|>", "<extra>", "<video>"])
def test_tokens_with_a_meaning_are_refused_everywhere(tokenizer, token):
    """Special tokens, and places of images and videos that a tokenizer knows among its added tokens only."""
    own = TOKENIZERS["byte-level" if "Ġ" in "".join(tokenizer.get_vocab()) else "sentencepiece"](
        additional_special_tokens=["<|im_start|>"]
    )
    own.add_tokens(["<video>"])
    vlm = vlm_with(own, CHATML)
    vlm.model.config.video_token_id = own.convert_tokens_to_ids("<video>")
    prompt = vlm.prompt(noise_image(), QUESTION)
    if token == "<extra>":  # an ordinary text here
        assert vlm.encode_answer(prompt, "a <extra> b")
        return
    text = f"a {token} b"
    for ask in (
        lambda: vlm.prompt(noise_image(), text),
        lambda: vlm.prompt(noise_image(), "Why?", system=text),
        lambda: vlm.encode_answer(prompt, text),
        lambda: vlm.encode_options(prompt, ["yes", text]),
    ):
        with pytest.raises(sg.PromptError, match="holds .*, which the model reads as a command"):
            ask()
    examples = ExampleCache(vlm, some_sinks)
    good = (noise_image(), QUESTION, "yes")
    sg.evaluate(vlm, {"plain": Fixed(sg.Gates.ones(vlm))}, [(noise_image(), QUESTION, text), good], examples=examples)
    assert list(examples.skipped) == ["sample 0"] and token in examples.skipped["sample 0"]


def test_an_end_that_is_no_special_token_is_refused_within_an_answer():
    """OPT ends an answer with a line break."""
    tokenizer = TOKENIZERS["byte-level"]()
    vlm = vlm_with(tokenizer, None, ends=("Ċ",))
    assert pieces(vlm, "two dogs")[-1] == "Ċ"
    with pytest.raises(sg.PromptError, match=r"holds '\\n', with which .* ends an answer"):
        pieces(vlm, "first line\nsecond line")
    assert vlm.prompt(noise_image(), "first line\nsecond line").question


@pytest.mark.parametrize("half", ["\ud83d", "\udce9"])
def test_half_characters_get_a_sentence(tokenizer, half):
    vlm = vlm_with(tokenizer, CHATML)
    prompt = vlm.prompt(noise_image(), QUESTION)
    for ask in (
        lambda: vlm.prompt(noise_image(), "caf" + half),
        lambda: vlm.prompt(noise_image(), "Why?", system="caf" + half),
        lambda: vlm.encode_answer(prompt, "caf" + half),
        lambda: vlm.encode_options(prompt, ["yes", "caf" + half]),
        lambda: vlm.prompter.chat.text([None, "caf" + half]),
    ):
        with pytest.raises(sg.PromptError, match=rf"half a character \(U\+{ord(half):04X}\) at position 3"):
            ask()


def test_prompts_and_answers_beyond_the_models_positions_are_refused(tokenizer):
    vlm = vlm_with(tokenizer, CHATML)
    with pytest.raises(sg.PromptError, match=r"the prompt has [\d,]+ positions and .* has 256; shorten"):
        vlm.prompt(noise_image(), "picture " * 300)
    prompt = vlm.prompt(noise_image(), "Why?")
    with pytest.raises(sg.PromptError, match="the prompt with its answer has"):
        vlm.encode_answer(prompt, "picture " * 300)
    with pytest.raises(sg.PromptError, match="the prompt with its options has"):
        vlm.encode_options(prompt, ["yes", "picture " * 300])


def test_generation_ends_at_the_models_last_position():
    """Learned positions have no more rows: an index error before."""
    family = ZOO["blip-2"]
    vlm = VLM(family.model(), None, "blip-2")
    vlm.model.generation_config.eos_token_id = None
    prompt = vlm.read(family.sample())
    positions = vlm.model.config.text_config.max_position_embeddings
    assert len(vlm.answer(prompt, max_new_tokens=10_000).ids) == positions - prompt.length + 1
    assert len(vlm.answer(prompt, max_new_tokens=3).ids) == 3


# --- options and scores


@pytest.mark.parametrize("template", [BLANK, CHATML, THOUGHT, OPENED])
def test_options_are_chosen_alike_by_sweeps_and_scores(tokenizer, template):
    """Behind an empty thought too, which all options share; ``sg.choose`` writes them out there."""
    options, image = ["yes", "no", "cat", "dogs"], noise_image()
    chosen, scored = [], []
    for seed in range(4):  # random models have one word each that they like best
        vlm = vlm_with(tokenizer, template, seed=seed)
        tables = [sg.Gates.ones(vlm).set("rest", scale) for scale in (0.0, 4.0)]
        prompt = vlm.prompt(image, QUESTION)
        session = sg.Session(vlm, prompt, some_sinks(vlm, prompt))
        chosen += [options[index] for index in sg.choose(session, tables, options)]
        methods = {str(index): Fixed(table) for index, table in enumerate(tables)}
        sample = sg.Sample((image,), QUESTION, "no", "", tuple(options))
        marks = sg.evaluate(vlm, methods, [sample], examples=ExampleCache(vlm, some_sinks), progress=False)
        scored += [marks.chosen[name][0] for name in methods]
        assert [right for (right,) in marks.right.values()] == [word == "no" for word in scored[-len(tables) :]]
    assert chosen == scored and len(set(chosen)) > 1


def test_options_that_differ_late_cannot_be_scored_in_one_forward(tokenizer):
    vlm = vlm_with(tokenizer, CHATML)
    examples = ExampleCache(vlm)
    assert examples.prepare(sg.Sample((noise_image(),), "Why?", "a cat", "", ("a cat", "a dog")), "shared") is not None
    assert examples.prepare(sg.Sample((noise_image(),), "Why?", "no", "", ("a cat", "a dog", "no")), "late") is None
    assert "differ in the first token behind what all begin with" in examples.skipped["late"]
    assert examples.prepare(sg.Sample((noise_image(),), "Why?", "why", "", ("yes", "no")), "absent") is None


def test_a_greedy_answer_is_compared_with_its_encoding(demo, monkeypatch):
    prompt = demo.prompt(noise_image(0, (64, 64)), "How many objects are there?")
    answer = greedy_answer(demo, prompt)
    assert answer.same and answer.written == answer.encoded and len(answer.written) >= 2
    assert describe(demo, prompt)["answers"] == "encoded as the model writes them"
    assert greedy_answer(demo, prompt, max_new_tokens=1).same, "cut off: nothing else to compare"
    trained = demo.processor.chat_template
    monkeypatch.setattr(demo.processor, "chat_template", trained.replace("{{ part.text }}", "small {{ part.text }}"))
    answer = greedy_answer(demo, prompt)
    assert answer.same is False and "small" in answer.sentence and "small" not in answer.written
    monkeypatch.setattr(demo, "answer", lambda *_, **__: SimpleNamespace(ids=[demo.tokenizer.eos_token_id]))
    assert greedy_answer(demo, prompt).same is None and "no text" in greedy_answer(demo, prompt).sentence


def test_any_token_that_ends_an_answer_is_right(tokenizer):
    vlm = vlm_with(tokenizer, CHATML, ends=(EOS, "<|im_end|>"))
    example = ExampleCache(vlm).prepare(sg.Sample((noise_image(),), "Why?", "yes"), "")
    assert example is not None
    with torch.no_grad():
        prefix = Prefix(vlm, next(batches(vlm, [example]))[1])
    assert example.answer[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")

    def right(*last):
        logits = torch.nn.functional.one_hot(torch.tensor([[*example.answer[:-1], *last]]), len(tokenizer)).float()
        return prefix.right(logits).tolist()

    assert right(example.answer[-1]) == [True]
    assert right(tokenizer.convert_tokens_to_ids(EOS)) == [True]
    assert right(example.answer[0]) == [False]


def test_rows_of_attention_stay_with_their_tokens_behind_a_special_one(tokenizer):
    vlm = vlm_with(tokenizer, CHATML)
    prompt = vlm.prompt(noise_image(), "Why?")
    yes, image = (tokenizer.convert_tokens_to_ids(token) for token in ("yes", IMAGE))
    yes = vlm.encode_answer(prompt, "yes")[0] if yes is None else yes
    rows = torch.arange(3.0).view(1, 1, 3, 1).expand(1, 1, 3, prompt.length)
    trace = vlm.trace(prompt, torch.zeros(len(tokenizer)), [yes, image, yes], {0: [rows]})
    assert len(trace.tokens) == 2 and trace.attention[0, 0, :, 0].tolist() == [0, 2]
    trace = vlm.trace(prompt, torch.zeros(len(tokenizer)), [image], {0: [rows]})
    assert trace.tokens == [] and trace.attention.shape[2] == 1


def test_a_text_with_a_place_for_an_image_that_is_not_there_gets_a_sentence(demo):
    """Some templates write the image in any case, also for a question of text alone."""
    chat = demo.prompter.chat
    with pytest.raises(sg.PromptError, match="a place for an image, but there is none"):
        chat.inputs(chat.text([None, "How many?"]), [])
    assert "pixel_values" in chat.inputs(chat.text([None, "How many?"]), [noise_image(0, (64, 64))])
