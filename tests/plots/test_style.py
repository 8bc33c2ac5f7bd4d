"""Colours, scales and files: what every figure relies on."""

import importlib.util
import os
from html.parser import HTMLParser
from itertools import combinations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from PIL import Image

from sinkgate.errors import SinkgateError
from sinkgate.plots import anatomy, style
from sinkgate.sinks.glossary import DARK_GROUP_COLORS

# What is left of a colour (linear RGB) without one kind of cone: Machado, Oliveira and Fernandes, 2009, severity 1.
SIGHTS = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
APART = 20  # CIE76: two patches side by side, without looking twice
PARTS = {frozenset(("rest", "l_sink")), frozenset(("rest", "ordinary"))}  # never beside what it is made of


def lab(color, sight="all cones"):
    """CIE L*a*b* of a colour as an eye sees it."""
    rgb = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear_sight = np.clip(np.array(SIGHTS[sight]) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ linear_sight / (0.9505, 1, 1.089)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(one, other, sight):
    return float(np.linalg.norm(lab(one, sight) - lab(other, sight)))


@pytest.mark.parametrize("colors", [style.GROUP_COLORS, DARK_GROUP_COLORS], ids=["light", "dark"])
@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("pair", list(combinations(style.GROUP_COLORS, 2)), ids=" ".join)
def test_groups_are_told_apart_by_every_eye(pair, sight, colors):
    one, other = (colors[group] for group in pair)
    assert distance(one, other, sight) >= (APART / 2 if frozenset(pair) in PARTS else APART)


@pytest.mark.parametrize("sight", SIGHTS)
def test_gains_are_told_from_losses_by_every_eye(sight):
    stops = dict(map(tuple, style.DIVERGING))
    for stop in (0, 0.2, 0.4):
        assert distance(stops[stop], stops[1 - stop], sight) >= APART * (1 - stop)


def test_the_scale_is_as_dark_at_both_ends():
    stops = dict(map(tuple, style.DIVERGING))
    lightness = {stop: lab(color)[0] for stop, color in stops.items()}
    assert all(abs(lightness[stop] - lightness[1 - stop]) < 8 for stop in (0, 0.2, 0.4))
    rising, falling = [0, 0.2, 0.4, 0.5], [0.5, 0.6, 0.8, 1]
    assert sorted(rising, key=lightness.__getitem__) == rising
    assert sorted(falling, key=lightness.__getitem__) == falling[::-1]


def test_grey_print_tells_groups_by_dash_and_marker():
    groups = style.GROUP_NAMES.keys()
    assert groups == style.GROUP_COLORS.keys() == style.GROUP_DASHES.keys() == style.GROUP_SYMBOLS.keys()
    assert len({style.GROUP_SYMBOLS[group] for group in groups}) == len(groups)
    together = [group for group in groups if group != "rest"]
    assert len({style.GROUP_DASHES[group] for group in together}) == len(together)


@pytest.fixture
def figure():
    figure = go.Figure(go.Scatter(y=[1, 2]))
    return style.dressed(figure, "A title", "what to look at", 300)


class Sources(HTMLParser):
    """Whatever a page would load."""

    def __init__(self, text):
        super().__init__()
        self.links = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href") and tag in ("script", "link", "img")]


def test_html_needs_nothing_else(figure, tmp_path):
    page = style.export(figure, tmp_path / "figure.html").read_text()
    assert "Plotly.newPlot" in page and len(page) > 1_000_000
    assert Sources(page).links == []


def test_images_are_files_of_their_kind(figure, tmp_path):
    try:
        style.export(figure, tmp_path / "figure.png")
    except SinkgateError as error:
        if "Chrome" not in str(error) or os.environ.get("SINKGATE_REQUIRE_BROWSER") == "1":
            raise
        pytest.skip(str(error))
    assert Image.open(tmp_path / "figure.png").size == (2 * style.WIDTH, 2 * 300)
    assert style.export(figure, tmp_path / "figure.svg").read_text().startswith("<svg")


def test_what_cannot_be_written_is_a_sentence(figure, tmp_path, monkeypatch):
    with pytest.raises(SinkgateError, match=r"figure\.jpg ends in \.jpg; expected \.html, \.svg, \.png or \.pdf"):
        style.export(figure, tmp_path / "figure.jpg")
    with pytest.raises(SinkgateError, match="cannot be written: No such file"):
        style.export(figure, tmp_path / "nowhere" / "figure.html")
    monkeypatch.setattr("kaleido.write_fig_sync", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no browser")))
    with pytest.raises(SinkgateError, match="Chrome or Chromium, which did not start"):
        style.export(figure, tmp_path / "figure.png")
    monkeypatch.setattr(style, "find_spec", lambda name: None if name == "kaleido" else importlib.util.find_spec(name))
    with pytest.raises(SinkgateError, match="pip install kaleido"):
        style.export(figure, tmp_path / "figure.png")


def test_logarithmic_axes_have_whole_numbers_as_labels():
    tokens = pd.DataFrame(
        {"layer": [0, 1], "group": "ordinary", "norm": [3.0, 700.0], "peak": [2.0, 900.0], "spike": [1.0, 5.0]}
    )
    for figure in (anatomy.norm_figure(tokens), anatomy.spike_figure(tokens)):
        axes = list(figure.select_yaxes())
        assert axes and all(axis.type == "log" and axis.tickformat for axis in axes)
