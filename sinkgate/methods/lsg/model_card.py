"""Model card of learned gates, the README.md on the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import ModelCardData

from sinkgate.methods.lsg.config import LSGConfig
from sinkgate.models.loading import BUILT_IN

#: In every card written here; a card without it is the user's own and never overwritten.
MARK = "<!-- Written by sinkgate; saving again overwrites this file unless this line is gone. -->"

_START = {
    "paper": "the scales of a layer sum to 1 and began equal",
    "identity": "the scales of a layer sum to the number of groups and began at 1, the unmodified model",
}
_GROUPING = {
    "v_sink": "V-sinks, and all other visual tokens",
    "l_sink": "L-sinks, and all other visual tokens",
    "three": "V-sinks, L-sinks, and ordinary visual tokens",
}
_SIGNAL = {
    "last": "of the last input token",
    "mean": "of all input tokens, averaged",
    "visual": "of the visual tokens, averaged",
}

_TEXT = """---
{front}
---
{mark}

# Layer-wise Sink Gating{of}

Learned gates that scale the attention Keys of visual tokens in some layers of a vision-language model, read from the prompt as
it passes. The method is that of *When Sinks Help or Hurt* (arXiv 2604.03316, section 4); the model's own weights are not part of
this and stay as they are.

| | |
|---|---|
| base model | {base} |
| layers, from 0 | {layers} |
| scaled groups | {groups} |
| a gate reads | the hidden state {signal}, at the input of its layer |
| a gate is | LayerNorm{norm}, {width} -> {bottleneck} -> {outputs}{bias}, {activation} between, softmax; {start} |
| parameters | {parameters:,} ({each:,} a gate) |
| sinks found by | `{criterion}` |

## Use
```python
import sinkgate as sg
from sinkgate.methods.lsg import LSG

vlm = sg.load({model})
lsg = LSG.from_pretrained({location})
lsg.check_fits(vlm)
prompt = vlm.prompt("picture.jpg", "How many objects are there?")
sinks = lsg.find_sinks(vlm, prompt)
print(vlm.answer(prompt, lsg.read(vlm, prompt, sinks), sinks).text)
```
"""


def card(
    config: LSGConfig,
    parameters: int,
    *,
    location: str = "path/to/this/folder",
    license: str | None = None,  # noqa: A002 (the Hub's word)
    training: Mapping[str, Any] | None = None,
) -> str:
    """Return the card as Markdown.

    Args:
        config: of the gates.
        parameters: how many the gates have together.
        location: argument of ``from_pretrained``.
        license: as the Hub names it, such as ``apache-2.0``; none is stated where None.
        training: facts of the training by name: samples, epochs, loss before and after, accuracy by kind of question, ...;
            a mapping within it becomes one row for each of its entries, None is left out.
    """
    base = config.base_model
    front = ModelCardData(
        base_model=base if base and re.fullmatch(r"[\w.-]+/[\w.-]+", base) else None,  # the Hub takes only its own ids
        library_name="sinkgate",
        license=license,
        tags=["sinkgate", "layer-wise-sink-gating", "attention-sinks", "vision-language-model", "arxiv:2604.03316"],
    )
    text = _TEXT.format(
        front=front.to_yaml(),
        mark=MARK,
        of=f" for {_cell(base)}" if base else "",
        base=_cell(base or "not stated")
        + "".join(
            f", {name} {_cell(value)}"
            for name, value in (("revision", config.revision), ("checksum of weights", config.weights))
            if value
        ),
        layers=", ".join(map(str, config.layers)),
        groups=_GROUPING[config.grouping],
        signal=_SIGNAL[config.signal],
        norm=" with weights" if config.norm_weights else "",
        width=config.hidden_size,
        bottleneck=config.bottleneck,
        outputs=len(config.groups),
        bias=" with biases" if config.bias else "",
        activation=config.activation,
        start=_START[config.start],
        parameters=parameters,
        each=parameters // len(config.layers),
        criterion=config.criterion,
        model=_text(_source(base)),
        location=_text(location),
    )
    rows = [f"| {name} | {value} |" for name, value in _rows(training or {})]
    return "\n".join([text, "## Training", "| | |", "|---|---|", *rows, ""]) if rows else text


def _source(base: str | None) -> str:
    """Return what loads the base model; of one in a folder only the folder's name is known, not its place."""
    if base is None:
        return "the model that these gates were trained on"
    return base if base in BUILT_IN or "/" in base else f"path/to/{base}"


def _text(value: str) -> str:
    """Return the value as a Python literal."""
    return json.dumps(value, ensure_ascii=False)


def _rows(facts: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        label = before + _cell(name).replace("_", " ")
        if isinstance(value, Mapping):
            yield from _rows(value, f"{label}, ")
        elif value is not None:
            yield label, _cell(value)


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    words = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(words.split()).replace("|", "\\|")
