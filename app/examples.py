"""Example pictures and questions: scenes by their seeds, a clip, and photographs of the package."""

from __future__ import annotations

import random
from functools import cache

from PIL import Image, ImageOps

import sinkgate as sg
from sinkgate.data import photographs
from sinkgate.scenes import questions
from sinkgate.scenes.questions import Question
from sinkgate.scenes.scene import Scene

from .pictures import FRAMES

FIRST_SCENE = 71  # seed
FIRST_KIND, FIRST_QUESTION = "count", "How many objects are there?"  # its answer changes with the fader of layer 2
CLIP = "clip"  # of the gallery: a video of a scene
CLIP_SEED = 1
GALLERY = (71, 26, 16, 68, 188, CLIP)  # seeds
PHOTOGRAPHS = ("cat", "coffee", "astronaut", "rocket", "camera", "clock")  # gallery of models that are no demo
SCENE_SIDE = 448  # pixels
THUMBNAIL_SIDE = 96  # pixels
TRIES = 3000  # to generate a question in the same words for an edited scene; one takes about 10 microseconds
PLAIN_QUESTIONS = ("How many objects are there?", "What color is the background?", "What do you see?")
GENERAL_QUESTIONS = ("What is in the picture?", "Describe the image.", "How many people are there?")
SCENES_ONLY = "The demo model is trained on scenes of coloured shapes only. For photographs, load a model that reads them: sinkgate app --model smolvlm-256m."
CLIP_NOTICE = "The demo model was trained on single pictures: it reads the frames as several pictures. Move the slider over the maps through time."


def random_scene(seed: int) -> Scene:
    """Return the scene of a seed."""
    return Scene.random(random.Random(seed))


def example_image(example: int | str) -> Image.Image:
    """Return a picture of the gallery: the scene of a seed, or a photograph by name."""
    if isinstance(example, str):
        return sg.open_image(photographs()[example])
    return random_scene(example).render(SCENE_SIDE)


@cache
def example_clip() -> sg.Video:
    """Return the gallery's clip."""
    rng = random.Random(CLIP_SEED)
    scenes = Scene.random(rng, (2, 3)).clip(rng, FRAMES)
    return sg.Video([scene.render(SCENE_SIDE) for scene in scenes], fps=2)


def thumbnail(example: int | str) -> Image.Image:
    """Return a small picture of an example; of the clip, its first and last frame in one."""
    if example == CLIP:
        image = Image.blend(example_clip().frames[0], example_clip().frames[-1], 0.4)
    else:
        image = example_image(example)
    return ImageOps.fit(image, (THUMBNAIL_SIDE, THUMBNAIL_SIDE))


def example_questions(scene: Scene, seed: int, kind: str | None, words: str) -> list[Question]:
    """Return a scene's example questions: one of every kind that it allows.

    Each kind has a random stream of its own, so that an edit changes no other wording than it must.

    Args:
        scene: the scene.
        seed: of the random streams.
        kind: of the question whose wording is kept.
        words: its wording, kept as long as the scene allows it.
    """
    examples = (_question(scene, seed, name, words if name == kind else "") for name in questions.KINDS)
    return [item for item in examples if item]


def _question(scene: Scene, seed: int, kind: str, words: str) -> Question | None:
    """Return a question of a kind, in these words where they fit the scene; None where the scene has none."""
    first, rng = None, random.Random(f"{seed} {kind}")
    for _ in range(TRIES if words else 1):
        question = questions.ask(scene, kind, rng)
        if question and question.question == words:
            return question
        first = first or question
    return first
