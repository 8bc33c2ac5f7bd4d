"""The large demo model: answers, and L-sinks inherited from a pretrained LLM; names of the demo models."""

from random import Random

import pytest

import sinkgate as sg
from sinkgate.models.loading import DEMO, built_in_gates
from sinkgate.scenes import Scene
from sinkgate.scenes.questions import ask_all
from sinkgate.sinks.criteria import SinkDimensions


@pytest.fixture(scope="module")
def large():
    return sg.load("demo-large")


@pytest.fixture(scope="module")
def scenes():
    return [Scene.random(Random(f"large/{index}")) for index in range(4)]


def test_it_answers(large, scenes):
    correct = []
    for index, scene in enumerate(scenes):
        image = scene.render()
        for question in ask_all(scene, Random(index)):
            trace = large.answer(large.prompt(image, question.question), max_new_tokens=6)
            correct.append(trace.text == question.answer)
    assert len(correct) > 40 and sum(correct) / len(correct) > 0.9


def test_every_image_has_l_sinks_in_the_llms_own_dimension(large, scenes):
    for scene in scenes:
        prompt = large.prompt(scene.render(), "How many objects are there?")
        sinks = sg.find_sinks(large, prompt, v_sink="attention", l_sink=SinkDimensions((507,)))
        per_layer = sinks.l_sink.sum(1).tolist()
        assert per_layer[:2] == [0, 0] and all(2 <= count <= 30 for count in per_layer[3:])
        assert sinks.v_sink.any()


def test_the_small_model_has_a_name_of_its_own(demo):
    small = sg.load("demo-small", check=False)
    assert small.name == "demo" and small.weights_checksum == demo.weights_checksum
    assert built_in_gates("demo-small") == built_in_gates("demo") == DEMO.parent / "gates"
    assert built_in_gates("llava-1.5-7b") is None
