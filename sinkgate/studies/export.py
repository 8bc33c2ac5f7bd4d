"""Export: attention rows, shares of groups, sinks with their evidence and logit-lens words of many pictures and questions, as tables.

Tables, each with the column ``sample``, the number of the sample from 0:

    samples     image, question, answer that was generated, V-sinks, L-sinks in any layer, error where it could not be used
    tokens      a row for each layer and visual token: the columns of `sinkgate.SinkMap.to_frame`, L2 norm of the state, words of the logit lens
                with their probabilities
    shares      a row for each recorded row and layer: the columns of `sinkgate.Trace.to_frame`
    attention   a row for each recorded row, layer and head: attention on every Key, summing to 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import pandas as pd

from sinkgate.analysis.logit_lens import LogitLens, logit_lens
from sinkgate.data import Sample
from sinkgate.data.identity import picture_of
from sinkgate.errors import SinkgateError
from sinkgate.images.io import Picture
from sinkgate.models.finder import SinkFinder
from sinkgate.models.trace import Trace
from sinkgate.models.vlm import VLM, find_sinks
from sinkgate.output import steps
from sinkgate.studies.base import OfSamples
from sinkgate.studies.runner import Tables
from sinkgate.training.dataset import ImageSinks

#: Endings of the files of a folder that are pictures.
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})


@dataclass(frozen=True)
class Export(OfSamples):
    """The study. Each sample is measured by itself, so no number depends on ``chunk``.

    Args:
        vlm: the model.
        samples: images and questions.
        find: finder of sinks.
        layers: LLM layers in ``tokens``, ``shares`` and ``attention``; all if None.
        words: words of the logit lens for each token; 0 for none.
        rows: attention rows, from the first generated token on.
        max_new_tokens: most tokens of an answer.
        chunk: samples in a part of the results.
        about: further facts for the record, such as paths.
    """

    kind: ClassVar[str] = "export"
    vlm: VLM
    samples: Sequence[Sample]
    find: SinkFinder = field(default_factory=SinkFinder)
    layers: Sequence[int] | None = None
    words: int = 3
    rows: int = 1
    max_new_tokens: int = 32
    chunk: int = 8
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """See `sinkgate.studies.runner.Study`."""
        return {
            **self.find.settings(self.vlm),
            "layers": "all" if self.layers is None else list(self.layers),
            "words": self.words,
            "rows": self.rows,
            "max_new_tokens": self.max_new_tokens,
            "chunk": self.chunk,
        }

    def work(self, unit: int) -> Tables:
        """Return the tables of one chunk; a sample that cannot be used has its error in ``samples`` and no rows in other tables."""
        tables: dict[str, list[pd.DataFrame]] = {"samples": [], "tokens": [], "shares": [], "attention": []}
        for number, sample in steps(self.numbered(unit, self.samples), "samples"):
            try:
                results = self._tables(sample)
            except SinkgateError as error:
                results = {"samples": pd.DataFrame([{**_NOTHING, "error": str(error)}])}
            for name, table in results.items():
                table.insert(0, "sample", number)
                if name == "samples":
                    table.insert(1, "image", ", ".join(map(_name, sample.images)))
                    table.insert(2, "question", sample.question)
                tables[name].append(table)
        joined = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items() if parts}
        joined["samples"] = joined["samples"].astype({"v_sinks": "Int32", "l_sinks": "Int32"})
        return joined

    def sinks(self, tables: Tables) -> list[ImageSinks]:
        """See `sinkgate.studies.runner.Study`."""
        counts = cast(pd.DataFrame, tables["samples"])[["sample", "v_sinks", "l_sinks"]].dropna()
        return [
            ImageSinks(v_sinks, l_sinks, picture=picture_of(self.samples[sample]))
            for sample, v_sinks, l_sinks in counts.itertuples(index=False)
        ]

    def _tables(self, sample: Sample) -> dict[str, pd.DataFrame]:
        vlm = self.vlm
        prompt = vlm.prompt(sample.images, sample.parts, earlier=sample.turns)
        sinks = find_sinks(vlm, prompt, v_sink=self.find.v_sink, l_sink=self.find.l_sink)
        trace = vlm.answer(prompt, max_new_tokens=self.max_new_tokens, max_rows=self.rows)
        layers = list(range(vlm.num_layers)) if self.layers is None else list(self.layers)
        tokens = sinks.to_frame()
        tokens = tokens[tokens["layer"].isin(layers)].reset_index(drop=True)
        if self.words and not vlm.adapter.cross_attention:
            tokens = tokens.join(_words(logit_lens(vlm, prompt, layers=layers, top=self.words)))
        counts = {"v_sinks": int(sinks.v_sink.sum()), "l_sinks": int(sinks.l_sink.any(0).sum())}
        tables = {"samples": pd.DataFrame([{"answer": trace.text, **counts, "error": None}]), "tokens": tokens}
        if self.rows:
            shares = trace.to_frame(sinks)
            tables |= {
                "shares": shares[shares["layer"].isin(layers)].reset_index(drop=True),
                "attention": _attention(trace, layers),
            }
        return tables


_NOTHING = {"answer": None, "v_sinks": None, "l_sinks": None}


def samples_of(places: Sequence[Path], questions: Sequence[str]) -> list[Sample]:
    """Return every question about every picture: files, and the pictures of folders by name.

    Raises:
        SinkgateError: a place is not there, or a folder holds no picture.
    """
    pictures: list[Path] = []
    for path in places:
        expected = f"expected a picture ({', '.join(sorted(IMAGES))})"
        if path.is_dir():
            files = sorted(file for file in path.glob("*") if file.suffix.lower() in IMAGES and file.is_file())
            if not files:
                raise SinkgateError(f"the folder {path} holds no picture; {expected}")
            pictures += files
        elif path.exists():
            pictures.append(path)
        else:
            raise SinkgateError(f"{path} is not there; {expected} or a folder of pictures")
    return [Sample((picture,), question, "") for picture in pictures for question in questions]


def _name(picture: Picture) -> str:
    return Path(picture).name if isinstance(picture, str | Path) else type(picture).__name__


def _words(lens: LogitLens) -> pd.DataFrame:
    """Return the norm of each layer's and token's state, its words in one column and their probabilities in another, as lists."""
    rows, tokens, _ = lens.ids.shape
    pairs = [lens.words(token, layer) for layer in lens.layers for token in range(tokens)]
    return pd.DataFrame(
        {
            "norm": lens.norms.flatten().tolist(),
            "words": [[word for word, _ in each] for each in pairs],
            "probabilities": [[share for _, share in each] for each in pairs],
        },
        index=range(rows * tokens),
    )


def _attention(trace: Trace, layers: Sequence[int]) -> pd.DataFrame:
    _, heads, rows, _ = trace.attention.shape
    lines = [(row, layer, head) for row in range(rows) for layer in layers for head in range(heads)]
    table = pd.DataFrame(lines, columns=["row", "layer", "head"])
    weights = [trace.attention[layer, head, row].float().numpy() for row, layer, head in lines]
    return table.assign(attention=pd.Series(weights))
