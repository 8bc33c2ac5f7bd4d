"""Which sinks the demo model has, where they lie, what they draw: measured criterion by criterion.

An L-sink counts here only where it is one for at least four fifths of the questions put to its image: a patch
that is attended because it holds the object asked for is no sink.

Shapes: L LLM layers, V visual tokens, G layers looked at: one of the encoder, or L.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from sinkgate.demo.scoring import Asked
from sinkgate.images.layout import Sheet
from sinkgate.models.vlm import VLM
from sinkgate.scenes.scene import Scene
from sinkgate.sinks.classify import Observation, classify
from sinkgate.sinks.criteria import CRITERIA

STEADY = 0.8  # share of an image's questions for which a token must be an L-sink
DRAWS = 5.0  # times the mean attention of ordinary patches


@dataclass(frozen=True)
class Found:
    """What one criterion finds of one kind of sink; L-sinks at the layer where most images have one.

    ``tokens`` an image (mean), ``images`` share of images with any, ``on_objects`` share of the sinks that lie on an
    object, ``attention`` of a sink over the mean attention of ordinary patches, ``draws`` share of images where that is
    at least ``DRAWS``. For V-sinks both are in the encoder layer that reads the features, ``llm_attention`` is at the LLM
    layer where they draw most, whatever is asked and over all text; ``scene_attention`` is the same from the token that writes
    the answer to a question about the whole scene. For L-sinks all are in ``layer`` of the LLM.
    """

    tokens: float
    images: float
    on_objects: float
    attention: float
    draws: float
    llm_attention: float
    scene_attention: float
    layer: int | None


def measure(vlm: VLM, data: list[Asked]) -> dict[str, dict[str, Found]]:
    """V-sinks and L-sinks by every named criterion: criterion -> ``v_sink``, ``l_sink`` -> what was found.

    Every scene needs a question about the whole of it.
    """
    rows: dict[tuple[str, str], list[dict[str, Tensor]]] = defaultdict(list)
    for scene, asked in tqdm(data, desc="sinks"):
        image = scene.render()
        prompts = [vlm.prompt(image, question.question) for question in asked]
        seen = [vlm.observe(prompt) for prompt in prompts]
        reading = seen[0].encoder_attention
        assert reading is not None  # the demo model's encoder can be looked into
        covered = on_objects(scene, prompts[0].grid)
        attention = torch.stack([one.attention for one in seen]).mean(0)  # L, V: whatever is asked
        answering = torch.stack(  # L, V: of the token that writes the answer, where the whole scene is asked about
            [
                vlm.predict(prompt).attention[:, :, 0, prompt.visual.cpu()].mean(1)
                for prompt, question in zip(prompts, asked, strict=True)
                if question.scope == "global"
            ]
        ).mean(0)
        for name in CRITERIA:
            v_sink, l_sink = _steady(seen, prompts[0].sheets, name)
            ordinary = ~(v_sink | l_sink)  # L, V
            rows[name, "v_sink"].append(
                _of_one_image(v_sink[None], ~v_sink[None], reading[None], covered)
                | {
                    "llm": _ratio(v_sink.expand(len(l_sink), -1), ordinary, attention),
                    "scene": _ratio(v_sink.expand(len(l_sink), -1), ordinary, answering),
                }
            )
            rows[name, "l_sink"].append(_of_one_image(l_sink, ordinary, attention, covered))
    return {
        name: {kind: _summed(rows[name, kind], kind == "l_sink") for kind in ("v_sink", "l_sink")} for name in CRITERIA
    }


def on_objects(scene: Scene, grid: tuple[int, int]) -> Tensor:
    """Which patches of a grid of rows and columns have an object's bounding box under their middle, (V,) boolean."""
    rows, columns = grid
    middles = [((c + 0.5) / columns, (r + 0.5) / rows) for r in range(rows) for c in range(columns)]
    return torch.tensor([any(item.covers(x, y) for item in scene.objects) for x, y in middles])


def covered_share(data: Iterable[Asked], grid: tuple[int, int]) -> float:
    """Share in [0, 1] of all patches that lie on an object: what ``Found.on_objects`` would be by chance."""
    return torch.stack([on_objects(scene, grid) for scene, _ in data]).float().mean().item()


def _steady(seen: list[Observation], sheets: tuple[Sheet, ...], name: str) -> tuple[Tensor, Tensor]:
    """V-sinks (V,) and steady L-sinks (L, V) of one image."""
    maps = [classify(one, sheets, v_sink=name, l_sink=name) for one in seen]
    return maps[0].v_sink, torch.stack([one.l_sink for one in maps]).float().mean(0) >= STEADY


def _ratio(sinks: Tensor, ordinary: Tensor, attention: Tensor) -> Tensor:
    """Mean attention of the sinks over that of ordinary patches in each layer, 0 where there is no sink; (G,)."""
    on_sinks = (attention * sinks).sum(-1) / sinks.sum(-1).clamp_min(1)
    on_rest = (attention * ordinary).sum(-1) / ordinary.sum(-1).clamp_min(1)
    return on_sinks / on_rest.clamp_min(1e-12)


def _of_one_image(sinks: Tensor, ordinary: Tensor, attention: Tensor, covered: Tensor) -> dict[str, Tensor]:
    return {
        "tokens": sinks.sum(-1).float(),
        "on_objects": (sinks & covered).sum(-1).float(),
        "ratio": _ratio(sinks, ordinary, attention),
    }


def _summed(images: list[dict[str, Tensor]], by_layer: bool) -> Found:
    tokens, on_objects_, ratio = (
        torch.stack([row[key] for row in images]) for key in ("tokens", "on_objects", "ratio")
    )
    layer = int((tokens > 0).float().mean(0).argmax())
    tokens, on_objects_, ratio = tokens[:, layer], on_objects_[:, layer], ratio[:, layer]
    having = tokens > 0
    some = bool(having.any())

    def strongest(key: str) -> float:
        """The ratio at the layer where it is highest on average, over images that have a sink."""
        if by_layer or not some:
            return 0.0
        return torch.stack([row[key] for row in images])[having].mean(0).max().item()

    return Found(
        tokens=tokens.mean().item(),
        images=having.float().mean().item(),
        on_objects=(on_objects_.sum() / tokens.sum().clamp_min(1)).item(),
        attention=ratio[having].mean().item() if some else 0.0,
        draws=(ratio >= DRAWS).float().mean().item(),
        llm_attention=strongest("llm"),
        scene_attention=strongest("scene"),
        layer=layer if by_layer and some else None,
    )
