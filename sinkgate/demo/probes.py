"""What visual tokens know: linear probes on V-sinks and on ordinary tokens, in the encoder and along the LLM.

Global facts are the number of objects and the majority colour; local ones are shape, size and colour of the
leftmost object. After the paper's probes (section 3); here with objects whose place is known.
"""

from __future__ import annotations

from collections import defaultdict
from random import Random
from statistics import fmean, stdev

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sinkgate.demo.anatomy import on_objects
from sinkgate.demo.scoring import Asked
from sinkgate.models.vlm import VLM, find_sinks
from sinkgate.scenes.questions import Question, majority_color
from sinkgate.scenes.scene import Scene
from sinkgate.studies.probes import probe

REPEATS = 5  # draws of ordinary background tokens
DRAWN = 3  # tokens a draw, averaged
LOCAL = ("shape", "size", "color")
GROUPS = ("v_sink", "background", "object")
Features = dict[str, dict[str, np.ndarray]]  # place -> group -> (scenes, width)


def measure(vlm: VLM, data: list[Asked], seed: int = 0) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Test accuracies in [0, 1]: target -> place (``encoder`` or an LLM layer's input) -> group -> [mean, standard deviation].

    The first half of the scenes trains, the second tests; the deviation is over ``REPEATS`` draws of background
    tokens. Groups: V-sinks averaged; ``DRAWN`` ordinary background tokens averaged; the ordinary tokens under the leftmost
    object averaged. Scenes without one of them are left out, alike for all. Every place and group has a control with shuffled
    labels, under ``shuffled``: chance, as the probe would reach it.
    """
    draws: list[Features] = [defaultdict(dict) for _ in range(REPEATS)]
    kept: list[Scene] = []
    rows: list[list[dict[str, dict[str, Tensor]]]] = []
    for index, (scene, asked) in enumerate(tqdm(data, desc="hidden states")):
        drawn = _pooled(vlm, scene, asked, Random(f"{seed}/{index}"))
        if drawn:
            kept.append(scene)
            rows.append(drawn)
    for draw, features in enumerate(draws):
        for place in rows[0][0]:
            features[place] = {
                group: torch.stack([row[draw][place][group] for row in rows]).numpy() for group in GROUPS
            }
    targets = {
        "count": [str(len(scene.objects)) for scene in kept],
        "majority_color": [majority_color(s) for s in kept],
    }
    leftmost = [min(scene.objects, key=lambda item: item.x) for scene in kept]
    targets |= {name: [getattr(item, name) for item in leftmost] for name in LOCAL}
    return {
        target: {place: _probe(draws, place, truth) for place in draws[0]}
        for target, truth in tqdm(targets.items(), desc="probes")
    }


def _pooled(vlm: VLM, scene: Scene, asked: list[Question], rng: Random) -> list[dict[str, dict[str, Tensor]]] | None:
    """For every draw, place and group, one averaged hidden state; None where a group is empty."""
    prompt = vlm.prompt(scene.render(), asked[0].question)
    sinks = find_sinks(vlm, prompt)
    seen = vlm.observe(prompt)
    covered = on_objects(scene, prompt.grid)
    leftmost = on_objects(Scene(scene.background, (min(scene.objects, key=lambda item: item.x),)), prompt.grid)
    ordinary = ~sinks.v_sink & ~sinks.l_sink.any(0)
    background = (ordinary & ~covered).nonzero().flatten().tolist()
    if not sinks.v_sink.any() or len(background) < DRAWN or not (ordinary & leftmost).any():
        return None
    assert seen.features is not None  # the demo model's encoder can be looked into
    places = {"encoder": seen.features} | {str(i): hidden[seen.visual] for i, hidden in enumerate(seen.hidden)}
    drawn = []
    for _ in range(REPEATS):
        chosen = rng.sample(background, DRAWN)
        drawn.append(
            {
                place: {
                    "v_sink": tokens[sinks.v_sink].mean(0),
                    "background": tokens[chosen].mean(0),
                    "object": tokens[ordinary & leftmost].mean(0),
                }
                for place, tokens in places.items()
            }
        )
    return drawn


def _probe(draws: list[Features], place: str, truth: list[str | None]) -> dict[str, list[float]]:
    known = np.array([i for i, label in enumerate(truth) if label is not None])
    labels = np.array([truth[i] for i in known])
    half = len(known) // 2
    shuffled = np.random.default_rng(0).permutation(labels)
    scores = {}
    for group in GROUPS:
        runs = draws if group == "background" else draws[:1]
        reached = [_fit(run[place][group][known], labels, half) for run in runs]
        scores[group] = [fmean(reached), stdev(reached) if len(reached) > 1 else 0.0]
    scores["shuffled"] = [_fit(draws[0][place]["v_sink"][known], shuffled, half), 0.0]
    return scores


def _fit(features: np.ndarray, labels: np.ndarray, half: int) -> float:
    halves = features[:half], labels[:half], features[half:], labels[half:]
    return probe(*halves, regularisers=[0.1], folds=2)["true"].accuracy  # nothing to choose: the fewest folds
