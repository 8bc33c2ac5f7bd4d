"""Study of a demo model's sinks against the truth of its scenes: by each criterion, on objects or not, and stable over questions.

A patch that draws attention because it holds the object of the question is no sink. So an L-sink counts here only if it is one for at
least four fifths of its image's questions.

Shapes: L LLM layers, V visual tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from sinkgate.data.identity import checksum
from sinkgate.demo.scoring import SceneQuestions
from sinkgate.images.layout import Sheet
from sinkgate.models.dimensions import sink_criteria
from sinkgate.models.vlm import VLM
from sinkgate.scenes.scene import Scene
from sinkgate.sinks.classify import Observation, classify
from sinkgate.sinks.criteria import CRITERIA, SinkCriteria
from sinkgate.studies.base import OfModel
from sinkgate.studies.results import Results
from sinkgate.studies.runner import Tables, chunks

STEADY = 0.8  # share of an image's questions for which a token must be an L-sink
ENCODER = -1  # its layer in the table


@dataclass(frozen=True)
class SceneSinks(OfModel):
    """The study, with two tables.

    ``sinks`` has a row for each scene, criterion, group ("v_sink", "l_sink") and layer (``ENCODER``: the encoder's, V-sinks only).
    ``tokens`` counts the group, ``on_objects`` those on an object. ``attention`` is that on one token of the group over that on an ordinary
    one: in the encoder layer that reads the features, in the LLM from the text of all questions. ``answering`` is the same from the token
    that generates the answer to a question about the whole scene. ``spiking`` counts V-sinks that the criterion of L-sinks names too.
    ``scenes`` has the patches of each scene and those on objects.

    Args:
        vlm: the model; its encoder can be observed.
        scenes: scenes with questions, at least one about the whole scene each.
        chunk: scenes in a part of the results.
        about: further facts for the record.

    Example:
        >>> results = run(SceneSinks(vlm, held_out(4, 20)), "runs/sinks")
    """

    kind: ClassVar[str] = "scene-sinks"
    vlm: VLM
    scenes: Sequence[SceneQuestions]
    chunk: int = 10
    about: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def criteria(self) -> dict[str, SinkCriteria]:
        """The criteria by name, "auto" and "dimensions" decided for the model."""
        return {name: sink_criteria(self.vlm, v_sink=name, l_sink=name) for name in CRITERIA}

    @property
    def settings(self) -> dict[str, Any]:
        """See `sinkgate.studies.runner.Study`."""
        return {"steady": STEADY, "chunk": self.chunk, **{name: held.settings for name, held in self.criteria.items()}}

    @property
    def data(self) -> dict[str, Any]:
        """See `sinkgate.studies.runner.Study`."""
        content = [[scene.to_dict(), [question.question for question in questions]] for scene, questions in self.scenes]
        return {"samples": len(self.scenes), "checksum": checksum(content)}

    @property
    def units(self) -> int:
        """See `sinkgate.studies.runner.Study`."""
        return chunks(len(self.scenes), self.chunk)

    def work(self, unit: int) -> Tables:
        """Return the tables of one chunk."""
        sinks: list[dict[str, Any]] = []
        patches: list[dict[str, Any]] = []
        for sample, (scene, questions) in self.numbered(unit, self.scenes):
            image = scene.render()
            prompts = [self.vlm.prompt(image, question.question) for question in questions]
            covered = on_objects(scene, prompts[0].grid)
            patches.append({"sample": sample, "patches": len(covered), "on_objects": int(covered.sum())})
            observations = [self.vlm.observe(prompt) for prompt in prompts]
            answering = torch.stack(
                [
                    self.vlm.predict(prompt).attention[:, :, 0, prompt.visual.cpu()].mean(1)
                    for prompt, question in zip(prompts, questions, strict=True)
                    if question.scope == "global"
                ]
            ).mean(0)
            for name, held in self.criteria.items():
                rows = _rows(observations, prompts[0].sheets, held, covered, answering)
                sinks += [{"sample": sample, "criterion": name, **row} for row in rows]
        return {"sinks": pd.DataFrame(sinks), "scenes": pd.DataFrame(patches)}


def on_objects(scene: Scene, grid: tuple[int, int]) -> Tensor:
    """Return for each patch of a grid (rows, columns) whether its middle is in an object's bounding box, (V,) boolean."""
    rows, columns = grid
    middles = [((c + 0.5) / columns, (r + 0.5) / rows) for r in range(rows) for c in range(columns)]
    return torch.tensor([any(item.covers(x, y) for item in scene.objects) for x, y in middles])


def steady(
    observations: Sequence[Observation], sheets: tuple[Sheet, ...], criteria: SinkCriteria
) -> tuple[Tensor, Tensor]:
    """Return V-sinks (V,), and (L, V) the tokens that the criterion of L-sinks names for ``STEADY`` of the questions, V-sinks among them."""
    maps = [classify(one, sheets, v_sink=criteria.v_sink, l_sink=criteria.l_sink) for one in observations]
    return maps[0].v_sink, torch.stack([one.l_verdict.mask for one in maps]).float().mean(0) >= STEADY


def _rows(
    observations: Sequence[Observation],
    sheets: tuple[Sheet, ...],
    criteria: SinkCriteria,
    covered: Tensor,
    answering: Tensor,
) -> Iterator[dict[str, Any]]:
    v_sink, named = steady(observations, sheets, criteria)
    l_sink = named & ~v_sink
    reading = observations[0].encoder_attention
    assert reading is not None  # the encoders of the demo models can be observed
    encoder = {"group": "v_sink", "layer": ENCODER, **_counts(v_sink, covered)}
    yield encoder | {"attention": _ratio(reading, v_sink, ~v_sink), "answering": None, "spiking": None}
    attention = torch.stack([one.attention for one in observations]).mean(0)  # (L, V)
    for layer, mask in enumerate(l_sink):
        ordinary = ~(v_sink | mask)
        for group, members in (("v_sink", v_sink), ("l_sink", mask)):
            yield {
                "group": group,
                "layer": layer,
                **_counts(members, covered),
                "attention": _ratio(attention[layer], members, ordinary),
                "answering": _ratio(answering[layer], members, ordinary),
                "spiking": int((v_sink & named[layer]).sum()) if group == "v_sink" else None,
            }


def _counts(members: Tensor, covered: Tensor) -> dict[str, int]:
    return {"tokens": int(members.sum()), "on_objects": int((members & covered).sum())}


def _ratio(attention: Tensor, members: Tensor, ordinary: Tensor) -> float | None:
    """Return the mean attention of members over that of ordinary tokens, None without either."""
    if not members.any() or not ordinary.any():
        return None
    return (attention[members].mean() / attention[ordinary].mean().clamp_min(1e-12)).item()


# --- reading the results


def summary(results: Results) -> pd.DataFrame:
    """Summarise each criterion over scenes.

    Columns: ``criterion``, ``group``, ``layer`` (V-sinks: of the LLM, where they draw most; L-sinks: where most images have one, then
    where there are most), ``tokens`` an image, ``images`` the share with any, ``on_objects`` the share on objects, ``encoder`` and ``llm``
    attention over ordinary tokens, ``answering``, and ``spiking``, the share of V-sinks that are L-sinks by the same criterion too, at
    the layer where it is highest. Ratios are medians over the images that have the group.
    """
    sinks = results.table("sinks")
    rows = []
    for (criterion, group), table in sinks.groupby(["criterion", "group"], sort=False):
        layers = table[table["layer"] != ENCODER].assign(some=lambda rows: rows["tokens"] > 0)
        rows_of_layer = layers.groupby("layer")
        by_layer = rows_of_layer[["some", "tokens", "on_objects", "spiking"]].mean()
        by_layer = by_layer.join(rows_of_layer[["attention", "answering"]].median())  # a ratio may be very large
        order = ["attention"] if group == "v_sink" else ["some", "tokens"]
        row: dict[str, Any] = {"criterion": criterion, "group": group, "layer": None}
        best = by_layer.fillna(0).sort_values(order, kind="stable").iloc[-1]
        if best["tokens"] > 0:
            encoder = table.loc[table["layer"] == ENCODER, "attention"].median()
            row |= {
                "layer": int(str(best.name)),
                "tokens": best["tokens"],
                "images": best["some"],
                "on_objects": best["on_objects"] / best["tokens"],
                "encoder": encoder,
                "llm": best["attention"],
                "answering": by_layer["answering"].max(),
                "spiking": by_layer["spiking"].max() / best["tokens"] if group == "v_sink" else None,
            }
        rows.append(row)
    columns = ["tokens", "images", "on_objects", "encoder", "llm", "answering", "spiking"]
    return pd.DataFrame(rows, columns=["criterion", "group", "layer", *columns])


def chance(results: Results) -> float:
    """Return the share of patches on objects, in [0, 1]."""
    scenes = results.table("scenes")
    return float(scenes["on_objects"].sum() / scenes["patches"].sum())
