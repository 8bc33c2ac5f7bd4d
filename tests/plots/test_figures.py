"""Every figure, from small tables with the true columns."""

import fake_results
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sinkgate.plots import GROUP_COLORS, GROUP_NAMES, frames_figure, maps_figure, shares_figure, words_figure
from sinkgate.plots.anatomy import (
    agreement_figure,
    attention_figure,
    broadcast_figure,
    norm_figure,
    projector_figure,
    sinks_figure,
    spike_figure,
    tokens_figure,
    value_ratio_figure,
)
from sinkgate.plots.evaluation import changes_figure
from sinkgate.plots.probes import probes_figure
from sinkgate.plots.sweep import confirmation_figure, curves_figure, layers_figure, lean_figure, settings_figure
from sinkgate.plots.training import lines_figure, losses_figure, scales_figure
from sinkgate.studies.anatomy import jaccard
from sinkgate.studies.evaluation import changes
from sinkgate.studies.probes import summary
from sinkgate.studies.sweep import confirmed, gains, leaning

ANATOMY, SWEEP = fake_results.anatomy(), fake_results.sweep()
GAINS = gains(**SWEEP)
BEST = GAINS.loc[GAINS.groupby(["task", "layer"])["change"].idxmax()]
FIGURES = {
    "norm": lambda: norm_figure(ANATOMY["tokens"]),
    "spike": lambda: spike_figure(ANATOMY["tokens"]),
    "attention": lambda: attention_figure(ANATOMY["tokens"]),
    "value ratio": lambda: value_ratio_figure(ANATOMY["tokens"]),
    "broadcast": lambda: broadcast_figure(ANATOMY["heads"]),
    "projector": lambda: projector_figure(ANATOMY["projector"]),
    "sinks": lambda: sinks_figure(ANATOMY["images"]),
    "agreement": lambda: agreement_figure(jaccard(ANATOMY["agreement"])),
    "probes": lambda: probes_figure(summary(**fake_results.probes())),
    "precision": lambda: probes_figure(summary(**fake_results.probes()), "mean_average_precision"),
    "lean": lambda: lean_figure(leaning(**SWEEP)),
    "layers": lambda: layers_figure(BEST),
    "settings": lambda: settings_figure(GAINS),
    "curves": lambda: curves_figure(GAINS, "local"),
    "confirmation": lambda: confirmation_figure(confirmed(**SWEEP)),
    "changes": lambda: changes_figure(changes(**fake_results.evaluation())),
}


def test_frames_are_columns_and_layers_rows():
    (heat,) = frames_figure({(0, 1): [0.1, 0.2, 0.3], (2, 2): [0.4, 0.0, 0.1]}).data
    assert list(heat.x) == ["0-1", "2"] and [list(row) for row in heat.z] == [[0.1, 0.4], [0.2, 0.0], [0.3, 0.1]]


def drawn(figure):
    """Return the figure as plain values, without those of the template."""
    return figure.to_plotly_json()


def pick(figure, kind):
    return [trace for trace in figure.data if trace.type == kind]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_says_what_it_shows(name):
    figure = FIGURES[name]()
    layout = drawn(figure)["layout"]
    assert layout["title"]["text"] and layout["title"]["subtitle"]["text"] and layout["height"] >= 200
    axes = [axis for key, axis in layout.items() if key.startswith(("xaxis", "yaxis"))]
    named = any(axis.get("title", {}).get("text") for axis in axes)
    assert named or name in ("projector", "agreement")  # whose panels say it
    assert all(trace.hovertemplate or trace.hoverinfo == "skip" or not trace.x[0] for trace in figure.data)


@pytest.mark.parametrize("name", [*FIGURES, "shares"])
def test_a_group_looks_the_same_everywhere(name):
    shares = {"v_sink": [0.1, 0.2], "l_sink": [0.3, 0.1]}
    figure = shares_figure(shares) if name == "shares" else FIGURES[name]()
    colors = dict(zip(GROUP_NAMES.values(), GROUP_COLORS.values(), strict=True))
    for trace in figure.data:
        if trace.name in colors:
            assert trace.line.color == colors[trace.name]


def test_samples_are_averaged_and_a_summary_is_left_as_it_is():
    tokens = ANATOMY["tokens"]
    means = tokens.groupby(["layer", "group"], as_index=False).mean(numeric_only=True)
    one, other = norm_figure(tokens), norm_figure(means)
    assert len(one.data) == len(fake_results.GROUPS)
    for mine, theirs in zip(one.data, other.data, strict=True):
        np.testing.assert_allclose(mine.y, theirs.y)
    v_sink = tokens[(tokens["group"] == "v_sink") & (tokens["layer"] == 2)]["norm"].mean()
    assert one.data[0].y[2] == pytest.approx(v_sink)


def test_a_model_without_sink_dimensions_has_no_panel_for_them():
    tokens = ANATOMY["tokens"]
    assert len(spike_figure(tokens).data) == 2 * len(fake_results.GROUPS)
    assert len(spike_figure(tokens.assign(spike=np.nan)).data) == len(fake_results.GROUPS)


def test_a_head_is_a_dot():
    (dots,) = broadcast_figure(ANATOMY["heads"]).data
    assert len(dots.x) == 4 * 2 and dots.x[0] == pytest.approx(
        ANATOMY["heads"].query("layer == head == 0")["v_sink"].mean()
    )


@settings(max_examples=20)
@given(st.permutations(range(3)), st.lists(st.booleans(), min_size=3, max_size=3))
def test_agreement_has_no_order(order, swapped):
    table = pd.DataFrame({"place": "llm", "first": list("aab"), "second": list("bcc"), "jaccard": [0.1, 0.2, 0.3]})
    other = table.copy()
    other.loc[swapped, ["first", "second"]] = table.loc[swapped, ["second", "first"]].to_numpy()

    def cells(frame):
        (heat,) = agreement_figure(frame).data
        values = {}
        for y, row in zip(heat.y, heat.z, strict=True):
            values |= {frozenset((x, y)): value for x, value in zip(heat.x, row, strict=True) if value is not None}
        return values

    assert cells(other.iloc[list(order)]) == cells(table) and len(cells(table)) == 3


def test_probes_show_deviation_controls_and_chance():
    means = summary(**fake_results.probes())
    figure = probes_figure(means)
    names = [trace.name for trace in figure.data]
    assert names.count("chance") == 2 and names.count("shuffled labels") == 6 and names.count("V-sinks") == 2
    shown = next(trace for trace in figure.data if trace.name == "V-sinks")
    row = means.query("target == 'count' and place == 'encoder' and group == 'v_sink' and labels == 'true'")
    assert shown.y[0] == row["accuracy"].item() and shown.error_y.array[0] == row["accuracy_std"].item()
    assert "chance" not in [trace.name for trace in probes_figure(means, "mean_average_precision").data]
    known = means.assign(accuracy=means["accuracy"].where(means["target"] == "count"))
    assert len(probes_figure(known).data) == 7


def test_places_are_in_the_order_of_depth():
    means = summary(**fake_results.probes(layers=12)).sample(frac=1, random_state=0)
    axis = drawn(probes_figure(means))["layout"]["xaxis"]
    assert list(axis["ticktext"]) == ["enc.", *map(str, range(12))]


@settings(max_examples=20)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6))
def test_colours_are_symmetric_about_nothing(values):
    frame = pd.DataFrame({"task": "a", "layer": range(len(values)), "lean": values, "low": -1.0, "high": 1.0})
    (heat,) = lean_figure(frame).data
    assert heat.zmin == -heat.zmax and heat.zmax >= np.abs(heat.z).max() - 1e-9 and heat.zmid == 0
    assert lean_figure(frame, limit=7).data[0].zmax == 7


def test_a_cell_is_signed_and_marked_where_it_holds():
    frame = pd.DataFrame(
        {
            "task": ["a", "a", "b"],
            "layer": [0, 1, 1],
            "v_sink": 0.2,
            "l_sink": 0.8,
            "ordinary": 0.8,
            "change": [0.0312, -0.05, -0.0001],
            "low": -0.1,
            "high": 0.1,
            "corrected": [0.2, 0.01, 1.0],
        }
    )
    (heat,) = layers_figure(frame).data
    assert heat.text.tolist() == [["+3.1", "<b>-5.0*</b>"], ["", "+0.0"]]
    assert "V-sinks 0.2, rest 0.8" in heat.customdata[0][0] and "-10.0 to +10.0" in heat.customdata[0][0]
    sure = frame.drop(columns="corrected").assign(low=[0.01, -0.1, -0.1])
    assert layers_figure(sure).data[0].text.tolist()[0] == ["<b>+3.1*</b>", "-5.0"]


def test_all_settings_are_there_from_little_to_much():
    frame = GAINS.assign(corrected=1.0)
    frame.loc[3, "corrected"] = 0.01
    figure = settings_figure(frame)
    (heat,) = pick(figure, "heatmap")
    assert np.array(heat.z).shape == (2, 10) and not np.isnan(np.array(heat.z)).any()
    marks = pick(figure, "scatter")[0]
    assert len(marks.x) == 1 and list(marks.marker.symbol) == [
        "triangle-up" if frame.loc[3, "change"] > 0 else "triangle-down"
    ]
    labels = [text.split("<br>")[0] for text in heat.customdata[0][:5]]
    assert labels == [f"V-sinks {v:g}, rest {rest:g}" for v, rest in ((0, 1), (0.5, 0.5), (0.5, 2), (0.8, 0.2), (1, 0))]


def test_curves_keep_to_the_line():
    figure = curves_figure(GAINS, "local")
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert len(lines) == 2 and list(lines[0].x) == pytest.approx([0, 0.5, 0.8, 1])
    low, high = drawn(figure)["layout"]["yaxis"]["range"]
    assert low <= 0 <= high and all(low <= point <= high for line in lines for point in line.y)


def test_what_was_promised_stands_beside_what_was_given():
    frame = confirmed(**SWEEP)
    promised, given_ = confirmation_figure(frame).data
    assert list(promised.x) == pytest.approx(list(100 * frame["searched"]))
    assert list(given_.x - given_.error_x.arrayminus) == pytest.approx(list(100 * frame["low"]))
    assert list(given_.x + given_.error_x.array) == pytest.approx(list(100 * frame["high"]))


def test_a_method_is_filled_where_its_change_holds():
    frame = pd.DataFrame(
        {"task": ["a", "b"], "method": "var", "change": [0.1, 0.0], "low": [0.05, -0.1], "high": [0.2, 0.1]}
    )
    (marks,) = changes_figure(frame).data
    assert list(marks.marker.symbol) == ["circle", "circle-open"]
    (marks,) = changes_figure(frame.assign(corrected=[0.2, 0.01])).data
    assert list(marks.marker.symbol) == ["circle-open", "circle"]


def test_names_are_shown_as_they_are():
    name = "<b>a & b</b>"
    sweep = fake_results.sweep(tasks=(name,))
    frame = gains(**sweep)
    figures = [
        settings_figure(frame),
        curves_figure(frame, name),
        lean_figure(leaning(**sweep)),
        confirmation_figure(confirmed(**sweep)),
        changes_figure(changes(**fake_results.evaluation(tasks=(name,), methods=("unmodified", name)))),
        probes_figure(summary(**fake_results.probes(targets=(name,)))),
        sinks_figure(ANATOMY["images"].assign(criterion=name)),
    ]
    for figure in figures:
        text = str(drawn(figure))
        assert name not in text and "&lt;b&gt;a &amp; b&lt;/b&gt;" in text


def test_maps_have_scales_of_their_own_or_share_one():
    image, maps = Image.new("RGB", (8, 8)), {"a": torch.eye(2), "b": 3 * torch.eye(2)}
    own, shared = (maps_figure(image, maps, "title", "subtitle", columns=1, shared=shared) for shared in (False, True))
    assert [trace.zmax for trace in pick(own, "heatmap")] == [None, None]
    assert [trace.zmax for trace in pick(shared, "heatmap")] == [3, 3]
    assert len(shared.layout.images) == 2 and shared.layout.height > maps_figure(image, maps, "", "").layout.height


def test_a_word_of_one_run_has_a_bar_in_all():
    runs = {"before": [("2", 0.9), ("3", 0.1)], "after": [("large", 1.0)]}
    before, after = words_figure(runs, "title", "subtitle").data
    assert list(before.x) == list(after.x) == ["2", "3", "large"]
    assert list(before.y) == [0.9, 0.1, 0] and list(after.y) == [0, 0, 1]
    assert list(words_figure(runs, "", "", most=1).data[0].x) == ["2", "large"]


def test_a_token_is_a_dot_in_each_layer_near_its_number():
    table = pd.DataFrame(
        {"layer": [0, 0, 1, 1], "token": [0, 1, 0, 1], "group": ["ordinary"] * 3 + ["l_sink"], "spike": [1.0, 2, 3, 99]}
    )
    l_sink, ordinary = tokens_figure(table, "spike", "title", "subtitle", "times").data
    assert list(l_sink.y) == [99] and list(ordinary.y) == [1, 2, 3]
    assert [round(x) for x in ordinary.x] == [0, 0, 1] and len(set(ordinary.x)) == 3


def test_maps_to_be_compared_share_rows_and_colours():
    leans = leaning(**SWEEP)
    tasks = sorted(set(leans["task"]), reverse=True)
    (heat,) = pick(lean_figure(leans, 50, tasks), "heatmap")
    assert list(heat.y) == tasks and (heat.zmin, heat.zmax) == (-50, 50)
    (own,) = pick(lean_figure(leans), "heatmap")
    row = dict(zip(own.y, own.z, strict=True))
    assert all(np.allclose(values, row[task]) for task, values in zip(heat.y, heat.z, strict=True))


def test_every_method_is_named_on_the_axis():
    frame = changes(**fake_results.evaluation())
    figure = changes_figure(frame)
    rows = dict(zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext, strict=True))
    for trace in figure.data:
        assert {rows[at] for at in trace.y} == {trace.name}
    assert [each.text for each in figure.layout.annotations] == [
        f"<b>{task}</b>" for task in dict.fromkeys(frame["task"])
    ]


def test_figures_of_gates_that_learn():
    lines = {"paper": ([(0.0, 1.0), (0.5, 0.5)], 0.5), "identity": ([(0.0, 2.0), (1.0, 1.0)], 1.0)}
    loss = {point: sum(point) for line, _ in lines.values() for point in line}
    plane, along = lines_figure(lines, loss, 2).data[:2]
    assert list(plane.y) == [1.0, 0.5] and list(along.y) == [1.0, 1.0] and list(plane.marker.size) == [6, 13]
    curve = pd.Series([2.0, 1.0], index=[0, 11])
    learnt = losses_figure({"layer 1": {"paper": curve}, "layer 2": {"paper": curve, "identity": curve}}, 1.5)
    assert [trace.showlegend for trace in learnt.data] == [True, False, True]
    table = pd.DataFrame([[0.1, 0.2], [0.3, 0.4]], index=["count", "place"], columns=[1, 2])
    first, second = scales_figure({"paper": (table, 0.5), "identity": (table.iloc[::-1], 1.0)}).data
    assert list(first.y) == list(second.y) == ["count", "place"] and np.array_equal(first.z, second.z)
    assert (first.zmid, second.zmid, second.zmax) == (0.5, 1.0, 2.0)
