"""The large demo model: answers, and L-sinks inherited from a pretrained LLM."""

from random import Random

import pytest

import sinkgate as sg
from sinkgate.scenes import Scene
from sinkgate.scenes.questions import ask_all
from sinkgate.sinks.criteria import SinkDimensions


@pytest.fixture(scope="module")
def large():
    return sg.load("demo-large")


@pytest.fixture(scope="module")
def scenes():
    return [Scene.random(Random(f"large/{index}")) for index in range(6)]


def test_it_answers(large, scenes):
    correct = []
    for index, scene in enumerate(scenes):
        image = scene.render()
        for question in ask_all(scene, Random(index)):
            trace = large.answer(large.prompt(image, question.question), max_new_tokens=6)
            correct.append(trace.text == question.answer)
    assert len(correct) > 60 and sum(correct) / len(correct) > 0.9


def test_every_image_has_l_sinks_in_the_llms_own_dimension(large, scenes):
    for scene in scenes:
        prompt = large.prompt(scene.render(), "How many objects are there?")
        sinks = sg.find_sinks(large, prompt, v_sink="attention", l_sink=SinkDimensions((507,)))
        per_layer = sinks.l_sink.sum(1).tolist()
        assert per_layer[:2] == [0, 0] and all(2 <= count <= 30 for count in per_layer[3:])
        assert sinks.v_sink.any()
