"""Survey of a model: the anatomy of its sinks, and the effect of a scale in each layer, summarized as a card to compare models by.

Shapes: L LLM layers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import pandas as pd

from sinkgate.data import Sample, photographs, scene_samples
from sinkgate.errors import SinkgateError, with_remedy
from sinkgate.models.dimensions import held_discovery
from sinkgate.models.session import Session
from sinkgate.models.vlm import VLM, find_sinks
from sinkgate.output import steps
from sinkgate.sinks.gates import Gates, Group
from sinkgate.sinks.known_dimensions import SIDES
from sinkgate.studies.anatomy import Anatomy, means_by_layer, sinks_per_image
from sinkgate.studies.export import samples_of
from sinkgate.studies.results import Results
from sinkgate.studies.runner import Tables

FORMAT, VERSION = "sinkgate-survey", 1
QUESTIONS = ("What is in the picture?", "How many people are there?")  # about each photograph
MEASURED: tuple[Group, ...] = ("v_sink", "l_sink", "ordinary")
SCENES = 26  # questions about scenes, for models of those only
FILE = "survey.json"


@dataclass(frozen=True)
class Survey(Anatomy):
    """Anatomy of every sample, and the table ``effects``: the next token under ``scale``, for each layer and group alone.

    Columns of ``effects``: sample, layer, group, tokens; ``variation``, the total variation in [0, 1] between the next-token
    probabilities of the unmodified and the gated model; ``before`` and ``after``, the probability of the unmodified model's first token; and
    ``changed``, whether another token is the most probable. Groups without tokens in a layer have no rows.

    Args:
        scale: of the group's Keys.

    Example:
        >>> results = run(Survey(vlm, samples), "runs/survey")
        >>> card(results)["sinks"]
    """

    kind: ClassVar[str] = "survey"
    scale: float = 0.5

    @property
    def settings(self) -> dict[str, Any]:
        """See `sinkgate.studies.runner.Study`."""
        return {**super().settings, "scale": self.scale, "sink_dimensions": _confidence(self.vlm)}

    def work(self, unit: int) -> Tables:
        """Return the tables of one chunk; raises as ``vlm.prompt`` if a sample cannot be used."""
        rows: list[dict[str, Any]] = []
        for number, sample in steps(self.numbered(unit, self.samples), "samples"):
            prompt = self.vlm.prompt(sample.images, sample.parts, earlier=sample.turns)
            sinks = find_sinks(
                self.vlm, prompt, v_sink=self.criteria.v_sink, l_sink=self.criteria.l_sink, merged=self.merged
            )
            session = Session(self.vlm, prompt, sinks)
            rows += [{"sample": number, **row} for row in effects(self.vlm, session, self.scale, self.layers)]
        table = pd.DataFrame(rows, columns=["sample", *EFFECTS]).astype({"sample": "int32", **EFFECTS})
        return {**super().work(unit), "effects": table}


EFFECTS = {
    "layer": "int32", "group": "str", "tokens": "int32", "variation": "float32", "before": "float32", "after": "float32",
    "changed": "bool",
}  # fmt: skip


def effects(vlm: VLM, session: Session, scale: float, layers: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """Return the effect of a scale on the next token, for each layer and group that has tokens there: the columns `EFFECTS`.

    Args:
        vlm: the model.
        session: a prompt with its sinks.
        scale: of the group's Keys, in [0, 4].
        layers: those to measure; all if None.

    Raises:
        GateError: the scale is out of range.
    """
    settings: list[tuple[int, Group, int]] = [
        (layer, group, count)
        for layer in (range(vlm.num_layers) if layers is None else layers)
        for group in MEASURED
        if (count := int(session.sinks.group(group, layer).sum()))
    ]
    plain, *gated = session.predict_all(
        [Gates.ones(vlm), *(Gates.ones(vlm).set(group, scale, layer) for layer, group, _ in settings)]
    ).softmax(-1)
    first = int(plain.argmax())
    return [
        {
            "layer": layer,
            "group": group,
            "tokens": count,
            "variation": float((probabilities - plain).abs().sum() / 2),
            "before": float(plain[first]),
            "after": float(probabilities[first]),
            "changed": int(probabilities.argmax()) != first,
        }
        for (layer, group, count), probabilities in zip(settings, gated, strict=True)
    ]


def _confidence(vlm: VLM) -> dict[str, list[dict[str, Any]] | None]:
    """Return the sink dimensions of both sides with their confidence: [] for a side without any, None for one that cannot be observed."""
    discovery = held_discovery(vlm)
    return {
        side: None
        if (evidence := discovery.side(side)) is None
        else [{"dimension": one.dimension, "confidence": round(one.confidence, 3)} for one in evidence.dimensions]
        for side in SIDES
    }


def card(results: Results) -> dict[str, Any]:
    """Return the card of a finished survey, plain JSON values: the numbers that a page and a comparison of models show.

    Shares are in [0, 1]; layers count from 0. ``attention`` is measured on the text after the image. A group's numbers
    come from the layer where it has most attention a token, by the mean over samples that have the group there.

    Raises:
        SinkgateError: the folder holds another study, or an unfinished one.

    Example:
        >>> card(Results("runs/survey"))["groups"]["l_sink"]["attention_per_token"]
    """
    if results.study != Survey.kind or not results.finished:
        raise SinkgateError(f"{results.folder} holds no finished survey; run sinkgate survey --out {results.folder}")
    about = results.about
    settings, images = about["settings"], results.table("images")
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": about["model"],
        "data": about["data"],
        "about": about.get("about", {}),
        "made_with": about["made_with"],
        "finished": about["finished"],
        "visual_tokens": {"fewest": int(images["tokens"].min()), "most": int(images["tokens"].max())},
        "criteria": {name: settings[name] for name in ("v_sink", "l_sink") if name in settings},
        "dimensions": settings["sink_dimensions"],
        "sinks": _sinks(images),
        "groups": _groups(results.table("tokens")),
        "effects": {"scale": settings["scale"], **_effects(results.table("effects"))},
    }


def _sinks(images: pd.DataFrame) -> dict[str, Any]:
    """Return mean number of sinks in an image and share of images with any, by criterion."""
    table: dict[str, Any] = {}
    for row in _records(sinks_per_image(images)):
        if row["measure"] in ("v_sinks", "l_sinks"):
            counts = {"mean": round(row["mean"], 2), "share_of_images": round(row["some"], 3)}
            table.setdefault(row["criterion"], {})[row["measure"]] = counts
    return table


def _groups(tokens: pd.DataFrame) -> dict[str, Any]:
    """Return each group's numbers in the layer where a token of it has most attention, and its layers."""
    groups: dict[str, Any] = {}
    for group, rows in means_by_layer(tokens).reset_index().groupby("group", sort=False):
        best = _records(rows.nlargest(1, "per_token"))[0]
        groups[str(group)] = {
            "first_layer": int(rows["layer"].min()),
            "layers": len(rows),
            "layer": best["layer"],
            "tokens": round(best["tokens"], 2),
            "attention_per_token": best["per_token"],
            "attention": best["share"],
            "value_ratio": best["value_ratio"],
            "peak": best["peak"],
        }
    return groups


def _effects(table: pd.DataFrame) -> dict[str, Any]:
    """Return, by group, the mean variation of each layer and the layer where it is largest."""
    means = table.groupby(["group", "layer"], sort=False)[["variation", "changed"]].mean().reset_index()
    groups: dict[str, Any] = {}
    for group, rows in means.sort_values("layer").groupby("group", sort=False):
        best = _records(rows.nlargest(1, "variation"))[0]
        groups[str(group)] = {key: best[key] for key in ("layer", "variation", "changed")} | {
            "by_layer": {str(row["layer"]): round(row["variation"], 5) for row in _records(rows)}
        }
    return {"groups": groups}


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as plain Python values."""
    return cast(list[dict[str, Any]], table.to_dict("records"))


def samples_for(
    vlm: VLM, pictures: Sequence[Path] | None = None, questions: Sequence[str] | None = None
) -> tuple[list[Sample], dict[str, Any]]:
    """Return samples of a survey, and facts about them for the record.

    Args:
        vlm: the model.
        pictures: files and folders; None for the photographs that come with the package, or for scenes where the model
            lacks the words of questions about photographs.
        questions: about each picture; None for `QUESTIONS`.

    Raises:
        SinkgateError: a picture is not there.
    """
    texts = list(questions or QUESTIONS)
    if pictures:
        return samples_of(pictures, texts), {"images": [str(path) for path in pictures]}
    if questions is None and any(vlm.unknown_words(question) for question in QUESTIONS):
        return list(scene_samples(SCENES, split="test")), {"images": f"{SCENES} scenes of the test split"}
    return samples_of(list(photographs().values()), texts), {"images": "photographs of the package"}


def write_card(results: Results) -> Path:
    """Write the card beside the tables of its survey, and return its file; raises as `card`."""
    path = results.folder / FILE
    path.write_text(json.dumps(card(results), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_card(path: str | Path) -> dict[str, Any]:
    """Read the card of a survey from its file or folder.

    Raises:
        SinkgateError: there is no card, or one of a newer version.
    """
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        remedy = f"run sinkgate survey --out {path}"
        raise SinkgateError(f"{file} cannot be read: {with_remedy(error, remedy)}") from None
    except ValueError as error:
        raise SinkgateError(f"{file} is no card of a survey: {error}; run sinkgate survey --out {path}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SinkgateError(f"{file} is no card of a survey: expected the format {FORMAT!r}")
    if content["version"] > VERSION:
        raise SinkgateError(f"{file} has version {content['version']}; this sinkgate reads up to {VERSION}: update it")
    return content


NAMES = {
    "v_sink": "V-sinks",
    "l_sink": "L-sinks",
    "ordinary": "ordinary tokens",
    "first": "first token",
    "text": "text",
}


def compared(cards: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return cards side by side: a row for each measure, a column for each model."""
    columns: dict[str, dict[str, str]] = {}
    for number, each in enumerate(cards):
        name = str(each["model"]["name"])
        columns[f"{name} ({number + 1})" if name in columns else name] = _rows(each)
    order = list(dict.fromkeys(row for column in columns.values() for row in column))
    return pd.DataFrame({name: [column.get(row, "") for row in order] for name, column in columns.items()}, index=order)


def _rows(each: Mapping[str, Any]) -> dict[str, str]:
    """Return the rows of one model, in words."""
    fewest, most = each["visual_tokens"]["fewest"], each["visual_tokens"]["most"]
    rows = {
        "LLM layers": str(each["model"]["layers"]),
        "visual tokens": str(most) if fewest == most else f"{fewest} to {most}",
        "samples": str(each["data"]["samples"]),
    }
    for side, name in (("vision", "encoder"), ("llm", "LLM")):
        measured = each["dimensions"][side]
        words = ", ".join(f"{one['dimension']} ({one['confidence']:.2f})" for one in (measured or ())[:3])
        rows[f"sink dimensions, {name}"] = "not observed" if measured is None else words or "none"
    for criterion, counts in each["sinks"].items():
        for kind, name in (("v_sinks", "V-sinks"), ("l_sinks", "L-sinks")):
            if kind in counts:
                count = counts[kind]
                rows[f"{name} by {criterion}"] = f"{count['mean']:g} an image, in {count['share_of_images']:.0%}"
    for group, name in NAMES.items():
        if group in each["groups"]:
            of = each["groups"][group]
            rows[f"{name}: attention per token"] = f"{of['attention_per_token']:.2%} (layer {of['layer']})"
            rows[f"{name}: Values over the mean"] = f"{of['value_ratio']:.2f}"
    scale = each["effects"]["scale"]
    for group, of in each["effects"]["groups"].items():
        rows[f"{NAMES[group]} × {scale:g}: largest change of the next token"] = (
            f"{of['variation']:.1%} of probability (layer {of['layer']}), another token in {of['changed']:.0%}"
        )
    return rows
