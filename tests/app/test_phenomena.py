"""Every stated effect of a demo model holds: its answers, its masked map, and the fader that "Show me" moves."""

from __future__ import annotations

import pytest
import torch

import sinkgate as sg
from app.engine import MAX_NEW_TOKENS, Engine
from app.examples import FIRST_QUESTION, FIRST_SCENE, SCENE_SIDE, random_scene
from app.phenomena import DEMONSTRATIONS, PHENOMENA, Phenomenon, demonstration, gallery
from app.share_links import Link

CASES = [pytest.param(name, each, id=f"{name} {each.title}") for name, all_ in PHENOMENA.items() for each in all_]


@pytest.fixture(scope="module")
def models() -> dict[str, sg.VLM]:
    return {name: sg.load(name) for name in PHENOMENA}


@pytest.mark.parametrize(("name", "phenomenon"), CASES)
def test_a_stated_effect_holds(models: dict[str, sg.VLM], name: str, phenomenon: Phenomenon) -> None:
    vlm, scene = models[name], random_scene(phenomenon.seed)
    prompt = vlm.prompt(scene.render(SCENE_SIDE), phenomenon.question)
    sinks, gates = sg.find_sinks(vlm, prompt), phenomenon.link(vlm).gates
    traces = [vlm.answer(prompt, each, sinks, max_new_tokens=MAX_NEW_TOKENS) for each in (None, gates)]
    assert tuple(trace.text for trace in traces) == phenomenon.answers
    assert gates.is_identity == (phenomenon.scale == 1)
    if phenomenon.group == "l_sink":
        assert sinks.l_sink.any()
        assert not torch.equal(traces[0].attention, traces[1].attention)
    if phenomenon.hide:
        hidden = sinks.v_sink | sinks.l_sink[phenomenon.view]
        tokens = traces[0].sheets[0].tokens
        brightest = {}
        for masked in (None, hidden):
            shares = traces[0].visual(phenomenon.view, hide=masked)
            brightest[masked is None] = divmod(int(shares.argmax()), shares.shape[1])
        assert hidden[tokens[brightest[True]]]  # a sink outshines everything
        row, column = brightest[False]
        x, y = (column + 0.5) / shares.shape[1], (row + 0.5) / shares.shape[0]
        [thing] = [thing for thing in scene.objects if max(abs(x - thing.x), abs(y - thing.y)) <= thing.radius]
        assert thing.shape in phenomenon.sentence


def test_the_same_scale_has_an_effect_in_one_layer_alone() -> None:
    for phenomena in PHENOMENA.values():
        flips, _, none, *_ = phenomena
        assert flips.answers[0] != flips.answers[1] and none.answers[0] == none.answers[1] == flips.answers[0]
        assert (flips.seed, flips.question, flips.group, flips.scale) == (
            none.seed, none.question, none.group, none.scale,
        )  # fmt: skip
        assert flips.layer != none.layer and "same" in none.sentence


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_show_me_turns_the_first_answer(models: dict[str, sg.VLM], name: str) -> None:
    vlm, shown = models[name], DEMONSTRATIONS[name]
    assert shown.question == FIRST_QUESTION
    prompt = vlm.prompt(random_scene(FIRST_SCENE).render(SCENE_SIDE), FIRST_QUESTION)
    gates = sg.Gates.ones(vlm).set(shown.group, shown.scale, shown.layer)
    answers = tuple(vlm.answer(prompt, each, max_new_tokens=MAX_NEW_TOKENS).text for each in (None, gates))
    assert answers == shown.answers and answers[0] != answers[1]


def test_links_open_on_the_page_and_other_models_have_none(models: dict[str, sg.VLM], tiny: sg.VLM) -> None:
    from app.handlers import Handlers  # with gradio, which processes that only collect tests need not import

    vlm = models["demo"]
    handlers = Handlers(Engine(vlm))
    ones = {"v_sink": [1.0] * 8, "rest": [1.0] * 8, "revision": 0}
    session = handlers.begin(ones, {"layer": 2})["session"]
    for item, phenomenon in zip(gallery(vlm), PHENOMENA["demo"], strict=True):
        link = Link.from_text(item["link"], handlers.engine)
        assert link == phenomenon.link(vlm)
        values = handlers.open_view(session, {"choice": {"link": item["link"]}})
        assert values["session"] is session and session.question == phenomenon.question
        assert values["maps"]["lens"]["layer"] == phenomenon.view and values["maps"]["lens"]["hide"] == phenomenon.hide
    before = session.state, session.scene, session.learned
    broken = handlers.open_view(session, {"choice": {"link": "broken"}})
    assert "damaged" in broken["status"]["text"] and before == (session.state, session.scene, session.learned)
    assert gallery(tiny) == [] and demonstration(tiny) is None
