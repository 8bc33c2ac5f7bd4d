"""Sections of the report on each kind of study: figures and tables, each with a sentence on how to read it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from sinkgate.benchmarks import BENCHMARKS
from sinkgate.plots import GROUP_NAMES
from sinkgate.plots import anatomy as anatomy_plots
from sinkgate.plots import evaluation as evaluation_plots
from sinkgate.plots import probes as probes_plots
from sinkgate.plots import sweep as sweep_plots
from sinkgate.plots.survey import effects_figure
from sinkgate.studies.anatomy import flattening, jaccard, over_pictures, sinks_per_image
from sinkgate.studies.evaluation import accuracies, attention_by_method, changes, scores, unread
from sinkgate.studies.probes import MEASURES, advantage, summary
from sinkgate.studies.race import placed, saved
from sinkgate.studies.results import Results
from sinkgate.studies.survey import card, compared
from sinkgate.studies.sweep import CELL, confirmed, gains, groups_apart, leaning

RARE = 0.1  # share of the pictures below which a group is not shown
MOST = 20  # rows in the table of the most significant changes
CHANGES = ["change", "low", "high"]


@dataclass(frozen=True)
class Section:
    """A figure or a table, with a title and a sentence on how to read it."""

    title: str
    sentence: str
    content: go.Figure | pd.DataFrame

    @property
    def slug(self) -> str:
        """The title as a file name; titles in other alphabets may give the same one."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def _anatomy(results: Results) -> Iterator[Section]:
    tokens, heads, projector, images, agreement = (
        over_pictures(results.table(name), results.table("images"))
        for name in ("tokens", "heads", "projector", "images", "agreement")
    )
    yield Section(
        "Norm of hidden states",
        "Each line is the mean length of a group's hidden states where a layer reads them. V-sinks are expected to enter the LLM "
        "longer than ordinary tokens, L-sinks to grow long inside it.",
        anatomy_plots.norm_figure(tokens),
    )
    yield Section(
        "Spikes",
        "Magnitude of a token's largest channel: in the model's sink dimensions, if it has any, and in all dimensions. L-sinks and "
        "the first token are expected to spike inside the LLM, V-sinks are not.",
        anatomy_plots.spike_figure(tokens),
    )
    yield Section(
        "Attention of the text",
        "Attention of the text after the image: on the left for one token of a group, on the right for the whole group.",
        anatomy_plots.attention_figure(tokens),
    )
    yield Section(
        "Length of Values",
        "Mean length of a group's Values over the mean of all Values. Near 0, attention to the group changes nothing (no-op); near 1 it adds as much as to other tokens.",
        anatomy_plots.value_ratio_figure(tokens),
    )
    if group := next((name for name in ("v_sink", "l_sink") if heads[name].to_numpy().any()), None):
        yield Section(
            "Broadcast or no-op, head by head",
            f"Each dot is a head. Far to the right it attends to {GROUP_NAMES[group]}; at the bottom (1) its output is the same for every query, so all queries "
            "get one content (broadcast). Together with short Values, attention on sinks is a no-op.",
            anatomy_plots.broadcast_figure(heads, group),
        )
    if len(projector):
        yield Section(
            "Through the projector",
            "Each dot is an image. The projector is expected to flatten the spike of V-sinks (right) and to leave them a large norm (left).",
            anatomy_plots.projector_figure(projector),
        )
        yield Section(
            "Through the projector, in numbers", "Mean and deviation over images.", _readable(flattening(projector))
        )
    yield Section(
        "Sinks in an image, by criterion",
        "Each dot is an image: the number of its visual tokens that a criterion calls sinks. Hundreds mean that the criterion does not fit this model.",
        anatomy_plots.sinks_figure(images),
    )
    yield Section(
        "Sinks in an image, in numbers",
        "Mean and deviation over images.",
        _readable(sinks_per_image(images), shares=["some"]),
    )
    overlap = jaccard(agreement)
    overlap = overlap[overlap.groupby("place")["jaccard"].transform("count") > 0]
    if len(overlap):
        yield Section(
            "Agreement of criteria",
            "Overlap of two criteria: 1 is the same set of tokens, 0 none in common; left out where no criterion names any.",
            anatomy_plots.agreement_figure(overlap),
        )


def _survey(results: Results) -> Iterator[Section]:
    yield Section(
        "Card of the model",
        "Each group's attention is that of the text after the image, in the layer where a token of the group has most; survey.json holds the same numbers.",
        compared([card(results)]).reset_index(names="measure"),
    )
    yield Section(
        "Effect of a scale on the next token",
        "Total variation between the next-token probabilities of the unmodified model and of the model with the Keys of one group in one layer scaled: "
        "0 is no change, 100 % another token for certain. Groups without tokens in a layer have no point there.",
        effects_figure(results.table("effects"), results.about["settings"]["scale"]),
    )
    yield from _anatomy(results)


def _probes(results: Results) -> Iterator[Section]:
    scored = results.table("scores")
    means = summary(scored)
    if means["accuracy"].isna().to_numpy().all():
        pictures = means.query("labels == 'true'")[["target", "place", "group", "train", "test"]]
        sentence = "No probe could be fitted: training needs several pictures of each of two classes. Here are the pictures that have each group."
        yield Section("Information on the scene in tokens", sentence, _readable(pictures))
        return
    means = means[means["train"] >= RARE * means["train"].max()]
    sentence = (
        "Accuracy of a linear probe on the mean hidden state of a group. Compare the lines with each other, and with the grey ones: "
        "the same probe with shuffled labels, and the most frequent answer. Points of fewer than a tenth of the "
        "pictures are left out; L-sinks are probed on the pictures that have any, which differ between layers."
    )
    yield Section("Information on the scene in tokens: accuracy", sentence, probes_plots.probes_figure(means))
    yield Section(
        "Information on the scene in tokens: mean average precision",
        "The same probes, scored by their ranking of the pictures, which needs no threshold.",
        probes_plots.probes_figure(means, "mean_average_precision"),
    )
    yield Section(
        "Lead over ordinary tokens",
        "Differences on the same split of pictures, mean and deviation over draws, in points.",
        _readable(
            advantage(scored).query("draws > 0"), points=[*MEASURES, *(f"{measure}_std" for measure in MEASURES)]
        ),
    )


def _export(results: Results) -> Iterator[Section]:
    yield Section(
        "Samples",
        "Answers and numbers of sinks; the other tables of the folder hold tokens, shares of attention and attention rows of each sample.",
        results.table("samples"),
    )


def _sweep(results: Results) -> Iterator[Section]:
    items, answers = results.table("items"), results.table("answers")
    cells, leans = gains(items, answers), leaning(items, answers)
    limit = 100 * float(cells["change"].abs().max()) or None
    if len(leans):
        yield Section(
            "Which way each task leans, layer by layer",
            "Accuracy where V-sinks outweigh the rest, minus accuracy where they are outweighed. Teal: the task gains from stronger sinks; brown: from weaker ones.",
            sweep_plots.lean_figure(leans),
        )
    best = cells.loc[cells.groupby(["task", "layer"], sort=False)["change"].idxmax()]
    yield Section(
        "The best setting of each layer",
        "The largest change of any setting of a layer. The best of many is biased upwards: chance alone gives a few points above 0, "
        "so see the marked cells, and below the changes that the other half of the items confirms.",
        sweep_plots.layers_figure(best, limit),
    )
    yield Section(
        "Every setting of the sweep",
        "The whole map in one picture; point at a cell to read its setting and its interval.",
        sweep_plots.settings_figure(cells, limit),
    )
    confirmations = confirmed(items, answers)
    if len(confirmations):
        yield Section(
            "Searched against confirmed",
            "The best setting, or none, is chosen on half of the items and measured on the other half, both ways round. Read the diamond and its interval.",
            sweep_plots.confirmation_figure(confirmations),
        )
        yield Section(
            "Searched against confirmed, in numbers",
            "Changes in points; smallest is the change that so many items could have shown.",
            _readable(confirmations, ["searched", "confirmed", "low", "high", "smallest"], ["base"]),
        )
        if groups_apart(answers).nunique() > 1:
            yield Section(
                "Two groups against three",
                "Gain from a separate scale for L-sinks, on items that had no part in the choice.",
                sweep_plots.confirmation_figure(confirmed(items, answers, families=groups_apart)),
            )
    changed = cells[cells["change"] != 0].nsmallest(MOST, "p")
    if len(changed):
        yield Section(
            "The most significant changes",
            "Settings with the smallest p of the sign test, and the same corrected for the number of settings; changes in points.",
            _readable(
                changed[["task", *CELL, "samples", "base", "accuracy", *CHANGES, "p", "corrected"]],
                CHANGES,
                ["base", "accuracy"],
            ),
        )
    for task in dict.fromkeys(cells["task"]):
        yield Section(
            f"{task}, layer by layer",
            "V-sinks scaled by rho, all other visual tokens by 1 - rho; 0 points is the unmodified model.",
            sweep_plots.curves_figure(cells, task),
        )


def _race(results: Results) -> Iterator[Section]:
    answers, dropped = results.table("answers"), results.table("dropped")
    table = placed(answers, dropped)
    finished = int((table["state"] == "finished").sum())
    yield Section(
        "Settings by their end in the race",
        f"{finished} of {len(table)} settings finished, with {saved(answers):.1f} times fewer answers than the exact map. A dropped setting is worse than another, "
        f"or gains less than {100 * results.about['settings']['margin']:g} points. The changes of settings that finished are biased upwards: they were chosen on "
        "the same items.",
        _readable(table, CHANGES),
    )


def _evaluation(results: Results) -> Iterator[Section]:
    items, answers = results.table("items"), results.table("answers")
    if answers["method"].nunique() > 1:
        changed = changes(items, answers)
        yield Section(
            "What each method changes",
            "Right of 0, a method answers more of the same questions correctly than the unmodified model; an interval across 0 does not decide.",
            evaluation_plots.changes_figure(changed),
        )
        whole = changed[changed["task"] == "all"].astype({"needed": int})
        yield Section(
            "Questions that one point needs",
            "The number of questions like these with which a change of one point would be significant in 4 of 5 studies, at the noise of each method here, as the only test; changes in points.",
            _readable(whole[["method", "samples", *CHANGES, "needed"]], CHANGES),
        )
    if results.about["settings"].get("attention"):
        shares = attention_by_method(results.table("attention"))
        yield Section(
            "Attention under each method",
            "Attention of the prompt's last position on each group, mean over heads, layers and items. It is measured before the first token; tokens that a method "
            "drops have none.",
            _readable(shares.rename(columns=GROUP_NAMES), shares=[GROUP_NAMES[name] for name in shares.columns[1:]]),
        )
    right = accuracies(items, answers)
    sentence = f"Share of right answers, by task. {unread(answers)}".strip()
    yield Section("Accuracy", sentence, _readable(right, shares=list(right.columns[1:])))
    benchmark = BENCHMARKS.get(results.about["data"].get("benchmark"))
    if benchmark is not None:
        named = scores(benchmark, items, answers)
        yield Section(
            "Scores",
            "All published scores of the benchmark by name; changes in points with 95 % intervals.",
            _readable(named, CHANGES, ["value"]),
        )


#: The sections of each kind of study. To add a kind, add a function.
SECTIONS: dict[str, Callable[[Results], Iterable[Section]]] = {
    "anatomy": _anatomy,
    "survey": _survey,
    "features": lambda _: (),
    "probes": _probes,
    "sweep": _sweep,
    "race": _race,
    "eval": _evaluation,
    "export": _export,
}
MEASURE_NAMES = {
    "tokens": "visual tokens",
    "v_patches": "patches that are V-sinks",
    "v_sinks": "V-sinks",
    "l_sinks": "L-sinks in any layer",
    "l_sinks_most": "L-sinks in the layer with most",
    "norm_before": "norm before",
    "norm_after": "norm after",
    "peak_before": "peak before",
    "peak_after": "peak after",
}


def _readable(frame: pd.DataFrame, points: Sequence[str] = (), shares: Sequence[str] = ()) -> pd.DataFrame:
    """Return the frame in readable form: groups by name, differences of shares in points, other shares in percent."""
    words = {name: (100 * frame[name]).map("{:+z.1f}".format, na_action="ignore") for name in points}
    words |= {name: frame[name].map("{:.1%}".format, na_action="ignore") for name in shares}
    return frame.assign(**words).replace({"group": GROUP_NAMES, "measure": MEASURE_NAMES})
