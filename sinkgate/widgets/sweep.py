"""Clickable map of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from sinkgate.benchmarks import Item
from sinkgate.errors import SinkgateError
from sinkgate.images.io import open_image
from sinkgate.plots.style import GAIN, LOSS
from sinkgate.plots.sweep import layers_figure
from sinkgate.studies.results import Results
from sinkgate.studies.sweep import SCALES, UNMODIFIED, gains, in_words
from sinkgate.widgets.common import Shown, card, data_url, following, ipywidgets, small, still

MAX_LISTED = 50  # questions
THUMB = 96  # pixels
BEST = "the best of each cell"


def sweep_map(results: Results | str | Path, items: Sequence[Item] | None = None) -> SweepMap:
    """Show the accuracy changes of a sweep as a map of tasks by layers; a click lists the questions whose answers flipped.

    Args:
        results: results of a finished `sinkgate.studies.sweep.Sweep`, or their folder.
        items: items of the sweep, to show questions and images too.

    Raises:
        SinkgateError: ipywidgets or anywidget is missing, the results are not of a finished sweep, or the items differ from those of the sweep.
    """
    return SweepMap(results, items)


class SweepMap(Shown):
    """Widget of `sweep_map`. ``cells`` are the rows on display, with the columns of `sinkgate.studies.sweep.gains`."""

    def __init__(self, results: Results | str | Path, items: Sequence[Item] | None = None) -> None:
        ipw = ipywidgets()
        results = results if isinstance(results, Results) else Results.load(results)
        if results.study != "sweep":
            raise SinkgateError(f"{results.folder} holds a study of kind {results.study!r}; expected a sweep")
        items_table, self._answers = results.table("items"), results.table("answers")
        if items is not None and [item.id for item in items] != items_table["id"].tolist():
            raise SinkgateError(
                f"the items differ from the {len(items_table)} items of the sweep in {results.folder}, or are in another order"
            )
        self._items = items
        self._questions = items_table.set_index("sample")
        self._changes = gains(items_table, self._answers)
        largest = 100 * float(self._changes["change"].abs().max()) or None
        self._tasks = {escape(task): task for task in self._changes["task"]}  # by their spelling in the figure
        cells = [in_words(row).partition(": ")[2] for _, row in self._changes.iterrows()]
        self._changes = self._changes.assign(setting=cells)
        options = [BEST, *dict.fromkeys(cells)]
        self.setting = ipw.Dropdown(options=options, description="Setting")
        self.setting.observe(self._draw, "value")
        self.cells = self._best()
        figure = layers_figure(self.cells, largest)
        title: Any = figure["layout"]["title"]
        # Plotly would draw title and subtitle over each other
        head = ipw.HTML(f"<b>{title['text']}</b><br>{small(title['subtitle']['text'])}")
        self.figure = still(figure.update_layout(title=None, margin_t=20))
        self.figure.data[0].on_click(self._clicked)
        self.flipped = ipw.HTML(card(small("Click a cell to see which questions it flipped.")), layout={"margin": "0"})
        self.box = ipw.VBox([head, self.setting, self.figure, self.flipped, following()])

    def __repr__(self) -> str:
        return f"sweep_map: {len(self._tasks)} tasks, {self.cells['layer'].nunique()} layers, {len(self._questions)} questions"

    def flips(self, task: str, layer: int) -> pd.DataFrame:
        """Return the questions whose answers a cell's setting flipped: ``id``, ``answer``, and correctness ``before`` and ``after``."""
        cell, plain = self._cell(task, layer), {"layer": UNMODIFIED, **dict.fromkeys(SCALES, 1.0)}
        right = {name: self._right(setting) for name, setting in (("before", plain), ("after", cell))}
        questions = self._questions.loc[self._questions["task"] == task].assign(**right)
        return questions.loc[questions["before"] != questions["after"], ["id", "answer", "before", "after"]]

    def choose(self, task: str, layer: int) -> None:
        """List the questions whose answers a cell's setting flipped, as a click on the cell does."""
        flipped = self.flips(task, layer)
        gained = int(flipped["after"].sum())
        heading = f"{task}, {in_words(self._cell(task, layer))}: {gained} gained, {len(flipped) - gained} lost"
        rows = "".join(self._row(sample, *row) for sample, *row in flipped.head(MAX_LISTED).itertuples())
        more = small(f"and {len(flipped) - MAX_LISTED} more") if len(flipped) > MAX_LISTED else ""
        self.flipped.value = card(f"<b>{escape(heading)}</b><table>{rows}</table>{more}")

    def _best(self) -> pd.DataFrame:
        return self._changes.loc[self._changes.groupby(["task", "layer"], sort=False)["change"].idxmax()]

    def _draw(self, _change: Any) -> None:
        setting = self.setting.value
        self.cells = self._best() if setting == BEST else self._changes.loc[self._changes["setting"] == setting]
        drawn = layers_figure(self.cells).data[0]
        with self.figure.batch_update():
            self.figure.data[0].update(x=drawn.x, y=drawn.y, z=drawn.z, text=drawn.text, customdata=drawn.customdata)

    def _cell(self, task: str, layer: int) -> pd.Series:
        return self.cells.loc[(self.cells["task"] == task) & (self.cells["layer"] == layer)].iloc[0]

    def _right(self, setting: Any) -> pd.Series:
        rows = self._answers["layer"] == setting["layer"]
        for name in SCALES:  # stored as float32
            rows &= (self._answers[name] - setting[name]).abs() < 1e-4
        return self._answers.loc[rows].set_index("sample")["right"]

    def _clicked(self, _trace: Any, points: Any, _state: Any) -> None:
        for layer, task in zip(points.xs, points.ys, strict=True):
            self.choose(self._tasks[task], int(layer))

    def _row(self, sample: int, name: str, answer: str, _before: bool, after: bool) -> str:
        color, turned = (GAIN, "wrong → right") if after else (LOSS, "right → wrong")
        cells = [f'<b style="color: {color}">{turned}</b>', escape(str(name)), f"answer: {escape(str(answer))}"]
        if self._items is not None:
            example = self._items[sample].sample
            pictures = (data_url(open_image(image), THUMB) for image in example.images)
            cells[1:1] = ["".join(f'<img src="{picture}">' for picture in pictures), escape(example.question)]
        return "<tr>" + "".join(f'<td style="padding: 2px 14px 2px 0">{cell}</td>' for cell in cells) + "</tr>"
