"""Pictures of the concept pages, made from the demo model: `python docs/figures.py` writes them beside the pages.

One function for each picture, with the name of its file. Drawings without numbers (`*-drawing.svg`) are made by hand. The output is
reproducible on one machine, takes about half a minute, and needs Chrome or Chromium for kaleido.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

import sinkgate as sg
from sinkgate.attention.patch import attached
from sinkgate.data import scene_samples
from sinkgate.models.trace import Trace
from sinkgate.plots.style import COLORWAY, GROUP_COLORS, INK, SEQUENTIAL, SOFT, dressed, export, group_style, panels
from sinkgate.plots.sweep import lean_figure
from sinkgate.scenes import Scene
from sinkgate.scenes.questions import KINDS
from sinkgate.studies.results import Results
from sinkgate.studies.sweep import leaning
from sinkgate.widgets.common import data_url

PAGES = Path(__file__).parent / "pages" / "concepts"
DEMO = Path(sg.__file__).parent / "demo"
WIDTH = 760  # pixels: a page's column
QUESTION = "How many objects are there?"
QUESTIONS = (QUESTION, "What color is the large circle?", "What colors are there?", "Is there a red circle?")
LAYER = 2  # where V-sinks of the demo model draw most
MARKS = {"v_sink": ("circle-open", "#ff922b"), "l_sink": ("square-open", "#74c0fc")}  # light on dark maps
IMAGE, SIDE = 71, 160  # seed of the picture of all pages; pixels of pictures inside figures


@dataclass(frozen=True)
class Panel:
    """A picture of a scene, in colour or in grey beneath the attention on its patches (rows, columns), with marked tokens.

    ``most``: the attention of the brightest colour; the panel's largest if None.
    """

    title: str
    prompt: sg.Prompt
    grid: Tensor | None = None
    most: float | None = None
    v_sink: Tensor | None = None
    l_sink: Tensor | None = None


def titled(figure: go.Figure, title: str, subtitle: str, height: int, legend: bool = True) -> go.Figure:
    """Apply `dressed`, with room for further lines of the subtitle."""
    more = 16 * subtitle.count("<br>")
    dressed(figure, title, subtitle, height + more, legend)
    return figure.update_layout(margin_t=84 + more)


def scene(seed: int) -> sg.Prompt:
    """Return the question on a random scene."""
    return VLM.prompt(Scene.random(Random(seed)).render(), QUESTION)


VLM = sg.load("demo")
PROMPT = scene(IMAGE)
SINKS = sg.find_sinks(VLM, PROMPT)


def stage(shown: Sequence[Panel], columns: int, title: str, subtitle: str) -> go.Figure:
    """Draw panels side by side, in rows of ``columns``."""
    rows = -(-len(shown) // columns)
    titles = [panel.title for panel in shown]
    space: dict[str, Any] = {"horizontal_spacing": 0.02, "vertical_spacing": 0.11 / rows}
    figure = make_subplots(rows, columns, subplot_titles=titles, **space)
    for number, panel in enumerate(shown):
        cell: dict[str, Any] = {"row": number // columns + 1, "col": number % columns + 1}
        height, width = panel.prompt.grid
        grid = torch.full((height, width), float("nan")) if panel.grid is None else panel.grid
        figure.add_heatmap(
            z=grid.numpy().round(5),
            zmin=0,
            zmax=panel.most or float(grid.max()),
            colorscale="Viridis",
            showscale=False,
            **cell,
        )
        picture = panel.prompt.view if panel.grid is None else panel.prompt.view.convert("L")
        place = {"x": -0.5, "y": -0.5, "sizex": width, "sizey": height, "sizing": "stretch"}
        layer = {"layer": "below"} if panel.grid is None else {"layer": "above", "opacity": 0.25}
        figure.add_layout_image(source=data_url(picture, SIDE), **layer, **place, **cell)
        for group, (symbol, color) in MARKS.items():
            mask = getattr(panel, group)
            if mask is not None:
                spots = [panel.prompt.sheets[0].find(token) for token in mask.nonzero()[:, 0].tolist()]
                y, x = [spot[0] for spot in spots if spot], [spot[1] for spot in spots if spot]
                strokes = [(color, 2.5)] if panel.grid is not None else [("white", 6), (GROUP_COLORS[group], 2.5)]
                for stroke, thick in strokes:
                    marker = {"symbol": symbol, "color": stroke, "size": 15, "line": {"width": thick}}
                    figure.add_scatter(x=x, y=y, mode="markers", marker=marker, **cell)
        figure.update_xaxes(range=[-0.5, width - 0.5], visible=False, constrain="domain", **cell)
        figure.update_yaxes(
            range=[height - 0.5, -0.5],
            visible=False,
            constrain="domain",
            scaleanchor=f"x{number + 1 if number else ''}",
            **cell,
        )
    top = 90 + 16 * subtitle.count("<br>") + 16 * max(title.count("<br>") for title in titles)
    dressed(figure, title, subtitle, top + rows * round((WIDTH - 40) / columns + 12), legend=False)
    return figure.update_layout(margin={"l": 10, "r": 10, "b": 6, "t": top})


def share_of_sinks(trace: Trace, layer: int) -> float:
    """Return the share of V-sinks in the attention of the answering token, in a layer of the LLM."""
    return float(trace.shares(SINKS)["v_sink"][layer])


def sinks_attention() -> go.Figure:
    """Draw the same rows with and without their sinks."""
    trace = VLM.answer(PROMPT)
    layers = trace.shares(SINKS)["v_sink"].argsort(descending=True)[:3].sort().values.tolist()
    above = [
        Panel(f"layer {at}: V-sinks take {share_of_sinks(trace, at):.0%}", PROMPT, trace.visual(at)) for at in layers
    ]
    below = [Panel(f"layer {at}, V-sinks hidden", PROMPT, trace.visual(at, hide=SINKS.v_sink)) for at in layers]
    marked = Panel("its V-sinks", PROMPT, v_sink=SINKS.v_sink)
    return stage(
        [Panel("the picture", PROMPT), *above, marked, *below],
        4,
        "Where the token that answers looks",
        f"“{QUESTION}” Above: a corner without anything in it outshines all else.<br>"
        "Below: the same attention without the two sinks; in layers 4 and 7 it lies on the objects.",
    )


def sinks_where() -> go.Figure:
    """Draw the positions of V-sinks in the picture."""
    prompts = [scene(seed) for seed in range(300)]
    masks = torch.stack([sg.find_sinks(VLM, prompt).v_sink for prompt in prompts])
    share = masks.float().mean(0)
    indices = (0, 4, 3, 7)
    often = PROMPT.sheets[0].spread(share)
    shown = [Panel("in % of 300 scenes", prompts[0], often)]
    shown += [Panel("", prompts[index], v_sink=masks[index]) for index in indices]
    figure = stage(
        shown,
        5,
        "V-sinks lie where nothing is",
        "Left: how often each patch is a V-sink. Right: four scenes with theirs.",
    )
    text = [[f"{100 * value:.0f}" if value >= 0.05 else "" for value in row] for row in often.tolist()]
    figure.data[0].update(text=text, texttemplate="%{text}", textfont={"size": 9})
    figure.layout.images = figure.layout.images[1:]
    return figure


def encoder_attention(prompt: sg.Prompt) -> Tensor:
    """Return the attention on each patch in each layer of the encoder, over that on the median patch, (layers, N)."""
    recorder = sg.Recorder("all", mean=True)
    with VLM.lock, torch.no_grad(), attached(VLM.adapter.encoder_attention, recorder=recorder):
        VLM.adapter.encode(prompt.inputs)
    received = torch.stack([calls[0][0] for calls in recorder.attention.values()])
    return received / received.median(1, keepdim=True).values


def kinds_depth() -> go.Figure:
    """Draw the attention on V-sinks, layer by layer, on both sides of the projector."""
    encoder, text, answering = [], [], []
    for prompt in map(scene, range(100)):
        sinks = sg.find_sinks(VLM, prompt)
        encoder.append(encoder_attention(prompt)[:, sinks.v_sink].mean(1))
        text.append(sinks.llm_share[:, sinks.v_sink].mean(1))
        row = VLM.predict(prompt).attention[:, :, 0].mean(1)[:, prompt.visual]
        answering.append((row / row.median(1, keepdim=True).values)[:, sinks.v_sink].mean(1))
    left: Any
    right: Any
    figure, (left, right) = panels(["in the vision encoder", "in the LLM"], 2, "layer", (0.04, 0))
    style = {"mode": "lines+markers", "cliponaxis": False}
    v_sink = group_style("v_sink")
    all_text = {
        "name": "from all text behind the image",
        "line": {"color": INK},
        "marker": {"color": INK, "symbol": "circle", "size": 8},
    }
    figure.add_scatter(y=_mean(encoder), **style, **v_sink | {"name": "from all patches"}, **left)
    figure.add_scatter(y=_mean(text), **style, **v_sink | all_text, **right)
    dotted = {"name": "from the token that answers", "line": {"color": GROUP_COLORS["v_sink"], "dash": "dot"}}
    figure.add_scatter(y=_mean(answering), **style, **v_sink | dotted, **right)
    figure.add_hline(y=1, line={"color": SOFT, "width": 1})
    figure.add_annotation(x=2.9, y=0.1, text="1: the median patch", showarrow=False, yanchor="bottom", **left)
    figure.update_yaxes(type="log", range=[-1, 2.6], dtick=1)
    figure.update_yaxes(title_text="attention on a V-sink, times the median", **left)
    figure.update_xaxes(dtick=1)
    return titled(
        figure,
        "Born in the encoder, at work in the LLM",
        "Attention that a V-sink receives, mean of 100 scenes. Look for the layer where it jumps, and at the log scale.",
        390,
    )


def _mean(rows: Sequence[Tensor]) -> list[float]:
    return [round(value, 4) for value in torch.stack(list(rows)).mean(0).tolist()]


def kinds_questions() -> go.Figure:
    """Draw the sinks of one picture under several questions."""
    shown = []
    for question in QUESTIONS:
        prompt = VLM.prompt(PROMPT.image, question)
        sinks = sg.find_sinks(VLM, prompt)
        shown.append(Panel(f"“{question}”", prompt, v_sink=sinks.v_sink, l_sink=sinks.l_sink.any(0)))
    figure = stage(
        shown,
        4,
        "V-sinks do not depend on the question",
        "Orange circles: V-sinks, always the same. Blue squares: what attention calls an L-sink in some layer:<br>"
        "it comes and goes with the question, and lies on objects. This model has hardly any L-sinks.",
    )
    return figure.update_annotations(font_size=11)


def criteria_disagree() -> go.Figure:
    """Draw three measurements of the same patches."""
    rows = []
    for prompt in map(scene, range(6)):
        observation, sinks = VLM.observe_encoder(prompt), sg.find_sinks(VLM, prompt)
        assert observation.features is not None
        magnitude = observation.features.abs()
        spike = magnitude.max(1).values / magnitude.median()
        rows.append(torch.stack([sinks.norm_ratio, spike, sinks.encoder_share, sinks.v_sink.float()]))
    norm, spike, attention, v_sink = (values.numpy() for values in torch.cat(rows, 1))
    titles = ["length of the state, times the median", "largest channel, times the median"]
    cells: Any
    figure, cells = panels(["attention against norm", "attention against spike"], 2, "", (0.05, 0))
    for x, title, threshold, cell in zip((norm, spike), titles, (2, 1000), cells, strict=True):
        for group, members in (("ordinary", v_sink == 0), ("v_sink", v_sink == 1)):
            style = group_style(group)
            style["marker"] |= {"size": 6 if group == "ordinary" else 9, "opacity": 0.6, "maxdisplayed": 0}
            place = {"x": x[members].round(2), "y": attention[members].round(2)}
            figure.add_scatter(mode="markers", showlegend=cell["col"] == 1, **place, **style, **cell)
        line = {"color": SOFT, "dash": "dash", "width": 1.5}
        figure.add_vline(x=threshold, line=line, **cell)
        figure.add_hline(y=5, line=line, **cell)
        figure.update_xaxes(title_text=title, **cell)
    figure.update_yaxes(type="log", dtick=1)
    figure.update_yaxes(title_text="attention received, times the median", **cells[0])
    figure.update_xaxes(range=[0, 2.2], **cells[0])
    figure.update_xaxes(type="log", range=[0, 3.2], dtick=1, **cells[1])
    return titled(
        figure,
        "One criterion sees sinks, two see none",
        "Patches of six scenes. Above the dashed line attention says sink; right of the other, norm or spike would.<br>"
        "Nothing lies there: the demo model's sinks are its shortest states.",
        430,
    )


def scaled(scale: float, layer: int = LAYER) -> sg.Gates:
    """Return gates that scale the V-sinks of one layer."""
    return sg.Gates.ones(VLM).set("v_sink", scale, layer)


def gating_rows() -> go.Figure:
    """Draw one row of attention at several scales."""
    session, scales = sg.Session(VLM, PROMPT, SINKS), (0, 0.25, 0.5, 1, 2)
    traces = [session.predict(scaled(scale)) for scale in scales]
    shown = []
    for scale, trace in zip(scales, traces, strict=True):
        word, sure = trace.next_token[0]
        title = f"{'unmodified: ' if scale == 1 else ''}scale {scale:g}<br>says {word}, {sure:.0%} sure"
        shown.append(Panel(title, PROMPT, trace.visual(LAYER), 0.1, SINKS.v_sink))
    return stage(
        shown,
        5,
        f"One row of attention, Keys of V-sinks scaled in layer {LAYER}",
        f"“{QUESTION}” There are two. Brightest: 10 % of the attention or more. Below 1 the corners pale<br>"
        "and the other patches get what they had. At 2 one corner takes nearly all, and the answer breaks as well.",
    )


def gating_heads() -> go.Figure:
    """Draw the effect of a scale on a positive and on a negative logit."""
    session, scales = sg.Session(VLM, PROMPT, SINKS), [step / 20 for step in range(41)]
    corner, text = int(SINKS.v_sink.nonzero()[0]), PROMPT.length - 1
    figure = go.Figure()
    for (layer, head), group in {(LAYER, 0): "v_sink", (0, 0): "l_sink"}.items():
        rows = torch.stack([session.predict(scaled(scale, layer)).attention[layer, head, 0] for scale in scales])
        shares = rows[:, PROMPT.visual][:, SINKS.v_sink].sum(1).tolist()
        odds = (rows[:, PROMPT.visual[corner]] / rows[:, text]).log()  # the text's logits stay
        logit = float(odds[20] - odds[0])  # its own, since at scale 0 it is 0
        style = group_style(group, 2.5)
        style |= {"name": f"layer {layer}, head {head}: the corner's logit is {logit:.1f}"}
        figure.add_scatter(x=scales, y=shares, mode="lines", **style)
        for at, place in ((0, "middle right"), (20, "bottom right" if logit > 0 else "top right")):
            marks = {"text": [f"{shares[at]:.1%}"], "textposition": place, "mode": "markers+text", "cliponaxis": False}
            figure.add_scatter(x=[scales[at]], y=[shares[at]], **marks, **style | {"showlegend": False})
    figure.add_vline(x=1, line={"color": SOFT, "dash": "dot", "width": 1.5})
    figure.add_annotation(x=1, y=-5.7, text="unmodified", showarrow=False, xanchor="left", xshift=6)
    figure.update_xaxes(title_text="scale of the Keys of V-sinks", dtick=0.25, range=[-0.05, 2])
    figure.update_yaxes(title_text="share of attention on V-sinks", type="log", range=[-6, 0.2], dtick=1)
    figure.update_yaxes(tickvals=[10.0**power for power in range(-6, 1)])
    figure.update_yaxes(ticktext=["0.0001%", "0.001%", "0.01%", "0.1%", "1%", "10%", "100%"])
    return titled(
        figure,
        "0 is not removal",
        "The row that answers, in two heads. At 0 the logit is 0, not minus infinity: one head lets go of its sinks,<br>"
        "the other, which had turned away from them, is made to look.",
        420,
    )


def layers_one_question() -> go.Figure:
    """Draw the effect of gating each layer alone, on one prompt."""
    session, scales = sg.Session(VLM, PROMPT, SINKS), [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2]
    words = VLM.tokenizer("2", add_special_tokens=False).input_ids
    tables = [scaled(scale, layer) for scale in scales for layer in range(VLM.num_layers)]
    sure = session.predict_all(tables).softmax(-1)[:, words[0]].view(len(scales), -1)
    share = session.predict().shares(SINKS)["v_sink"]
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.3, 0.7], vertical_spacing=0.06)
    layers = [str(layer) for layer in range(VLM.num_layers)]
    figure.add_bar(
        x=layers, y=share.numpy().round(4), marker_color=GROUP_COLORS["v_sink"], texttemplate="%{y:.0%}", row=1, col=1
    )
    figure.add_heatmap(
        x=layers,
        y=[f"{scale:g}" for scale in scales],
        z=sure.numpy().round(4),
        zmin=0,
        zmax=1,
        texttemplate="%{z:.0%}",
        colorscale=SEQUENTIAL,
        colorbar={"title": "says 2", "tickformat": ".0%", "thickness": 12, "len": 0.68, "y": 0.34},
        xgap=1,
        ygap=1,
        row=2,
        col=1,
    )
    figure.update_yaxes(title_text="V-sinks'<br>share", tickformat=".0%", range=[0, 0.75], row=1, col=1)
    figure.update_yaxes(title_text="scale of V-sinks", type="category", row=2, col=1)
    figure.update_xaxes(title_text="layer gated, all others unmodified", showgrid=False, row=2, col=1)
    return titled(
        figure,
        "Which layers care",
        f"“{QUESTION}” There are two. Above: what V-sinks draw in the row that answers.<br>"
        "Below: how sure the model is of 2 when one layer's V-sinks are scaled. Look at the column that pales.",
        470,
        legend=False,
    )


def layers_sweep() -> go.Figure:
    """Draw the shipped sweep: every kind of question, each layer gated alone."""
    results = Results.load(DEMO / "studies" / "sweep-clear")
    figure = lean_figure(leaning(results.table("items"), results.table("answers")))
    what = "Accuracy with V-sinks above the rest, minus below it, in points. Teal: above is better; brown: below.<br>"
    figure.layout.title.subtitle.text = (
        f"{what}2,600 questions; bold with * where it holds after correction. Look at layer 2."
    )
    return figure.update_layout(margin_t=92, height=figure.layout.height + 8)


def lsg_rho() -> go.Figure:
    """Draw the scales that a shipped gate sets, by question."""
    lsg = sg.LSG.from_pretrained(DEMO / "gates" / f"layer-{LAYER}")
    rho: dict[str, list[float]] = {}
    for sample in scene_samples(len(KINDS) * 40, split="test", haze=(0.5, 0.5)):
        gates = lsg.read(VLM, VLM.prompt(list(sample.images), sample.question))
        rho.setdefault(sample.kind, []).append(round(float(gates.scales[LAYER, 0]), 4))
    figure = go.Figure()
    for kind in sorted(rho, key=lambda kind: np.mean(rho[kind])):
        whole = KINDS[kind].scope == "global"
        color, name = (COLORWAY[0], "about the whole scene") if whole else (COLORWAY[1], "about a part of it")
        style = {"marker": {"size": 4, "color": color, "opacity": 0.5}, "line": {"color": color, "width": 1.5}}
        options = {"jitter": 0.6, "pointpos": 0, "boxpoints": "all", "fillcolor": "rgba(0, 0, 0, 0)"}
        figure.add_box(
            x=rho[kind],
            name=name,
            y=[kind] * len(rho[kind]),
            showlegend=kind in ("shapes", "shape"),  # one of each
            legendgroup=name,
            orientation="h",
            **options,
            **style,
        )
    figure.add_vline(x=1, line={"color": SOFT, "dash": "dot", "width": 1.5})
    figure.update_xaxes(title_text=f"scale of V-sinks that the gate of layer {LAYER} sets; 1 is the unmodified model")
    return titled(
        figure,
        "The gate reads the question",
        "Each dot is a question about a hazed scene, 40 of each kind. Kinds are ordered by their mean:<br>"
        "look which ones the gate leaves their sinks, and which it does not.",
        560,
    )


FIGURES: dict[str, Callable[[], go.Figure]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        sinks_attention,
        sinks_where,
        kinds_depth,
        kinds_questions,
        criteria_disagree,
        gating_rows,
        gating_heads,
        layers_one_question,
        layers_sweep,
        lsg_rho,
    )
}


def write(name: str) -> Path:
    """Write one picture; Plotly's random ids become fixed ones."""
    figure = FIGURES[name]().update_layout(width=WIDTH)
    traces: Any = figure.data
    for number, trace in enumerate(traces):
        trace.uid = f"-{number}"
    path = export(figure, PAGES / f"{name}.svg")
    text = path.read_text(encoding="utf-8")
    uid = re.search(r'id="defs-(\w+)"', text)
    assert uid is not None
    text = re.sub(r"(\d\.\d\d)\d{3,}", r"\1", text.replace(uid[1], name))  # a hundredth of a pixel is enough
    path.write_text(text + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    torch.manual_seed(0)
    for name in sys.argv[1:] or FIGURES:
        print(write(name))  # noqa: T201
