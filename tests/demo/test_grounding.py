"""Grounding of noun phrases: phrases name the objects that a person would name, nouns are those of questions."""

from copy import deepcopy
from random import Random

import pytest
import torch

from sinkgate.demo.batches import IGNORED, TurnMix
from sinkgate.demo.grounding import _GENERIC, _PLURALS, CLASSES, GroundedAnswerer, noun_phrases, phrase_classes
from sinkgate.demo.objectives import Tower
from sinkgate.scenes.questions import ask
from sinkgate.scenes.scene import COLORS, SHAPES, SIZES, Scene, SceneObject

CIRCLE = SceneObject("circle", "red", "small", 0.2, 0.7)
CROSS = SceneObject("cross", "red", "large", 0.8, 0.3)
SCENE = Scene("white", (CIRCLE, CROSS))


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("is the small red circle left of the large thing", [(4, [CIRCLE]), (9, [CROSS])]),
        ("how many red objects are there", [(3, [CIRCLE, CROSS])]),
        ("count the crosses", [(2, [CROSS])]),
        ("is there a blue cross", [(4, [])]),
        ("what color is the background", []),
    ],
)
def test_noun_phrases(question, expected):
    assert list(noun_phrases(question.split(), SCENE)) == expected


def test_classes_tell_a_single_object_only():
    assert phrase_classes([CIRCLE]) == (
        1,
        SHAPES.index("circle"),
        list(COLORS).index("red"),
        list(SIZES).index("small"),
        5,
        1,
    )
    assert phrase_classes([CIRCLE, CROSS]) == (2, *[IGNORED] * 5)
    assert phrase_classes([]) == (0, *[IGNORED] * 5)


def test_counting_questions_hold_their_answer_at_the_noun():
    """The read-out's class and the answer agree for every counting question."""
    rng = Random(4)
    counted = 0
    for _ in range(60):
        scene = Scene.random(rng)
        question = ask(scene, rng.choice(["count_color", "count_shape"]), rng)
        assert question
        phrases = list(noun_phrases(question.question.lower().strip("?.").split(), scene))
        counted += len(phrases) == 1 and len(phrases[0][1]) == int(question.answer)
    assert counted == 60


def test_nouns_are_in_questions_only_and_read_outs_learn(demo):
    torch.manual_seed(0)
    mix = TurnMix(questions=3, question_weight=0.0, tower_weight=0.0)
    model = deepcopy(demo.model)
    grounder = GroundedAnswerer(model, Tower(model.model.vision_tower), demo.tokenizer, mix, 6).bfloat16()
    run = grounder.run("0/nouns", 2)
    nouns, truth = grounder._phrases(run)
    assert truth.shape == (len(nouns), len(CLASSES)) and len(nouns)
    assert run.packed.segments[tuple(nouns.T)].unique().tolist() == [1, 2, 3]
    names = [demo.tokenizer.convert_ids_to_tokens(i) for i in run.packed.input_ids[tuple(nouns.T)].tolist()]
    assert set(names) <= {*SHAPES, *_PLURALS, *_GENERIC}
    loss, accuracies = grounder.objective(run)
    loss.backward()
    assert {"phrase_6"} == {name for name in accuracies if name.startswith("phrase")}
    assert all(parameter.grad is not None for parameter in grounder.readouts.parameters())
