"""Registry of methods by published name, folder of learned weights or file of fixed gates."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from sinkgate.errors import SinkgateError
from sinkgate.methods import (
    PAI,
    VAF,
    VAR,
    AdaptVis,
    FastV,
    Fixed,
    LoRA,
    Method,
    Registers,
    Remove,
    Reweight,
    ScalingVis,
    SinkToTheFront,
    Suppress,
)
from sinkgate.methods.lsg import LSG
from sinkgate.models.vlm import VLM
from sinkgate.sinks.fine_gates import load_gates
from sinkgate.sinks.numbers import typed_numbers

PUBLISHED: dict[str, type[Method]] = {
    "adaptvis": AdaptVis,
    "fastv": FastV,
    "front": SinkToTheFront,
    "pai": PAI,
    "registers": Registers,
    "remove": Remove,
    "scalingvis": ScalingVis,
    "suppress": Suppress,
    "vaf": VAF,
    "var": VAR,
}


def published(text: str) -> Method:
    """Return a published method by its name, with options as words: "vaf", "vaf image 1.3 layers 9-14".

    Options are the method's attributes; layers and other lists of whole numbers are typed as "9-14", "3,6" or "3+6", neurons as
    "5.120+4.31": layer and unit.

    Raises:
        SinkgateError: there is no such method or option, or a value is not of its kind.

    Example:
        >>> published("adaptvis unsure 0.8 threshold 0.4")
    """
    name, *words = text.split() or [""]
    if name not in PUBLISHED:
        raise SinkgateError(f"no method is called {name!r}; there are: {', '.join(PUBLISHED)}")
    method: Any = PUBLISHED[name]
    hints = get_type_hints(method)
    kinds = {field.name: hints[field.name] for field in fields(method)}
    unknown = [word for word in words[::2] if word not in kinds]
    if unknown or len(words) % 2:
        problem = f"no option {unknown[0]!r}" if unknown else f"no value for {words[-1]!r}"
        raise SinkgateError(
            f"the method {text!r} has {problem}; expected pairs of a name and a value, of {', '.join(kinds)}"
        )
    twice = [word for word in kinds if words[::2].count(word) > 1]
    if twice:
        raise SinkgateError(f"the method {text!r} has several values of {twice[0]}; expected one")
    return method(
        **{word: _value(word, value, kinds[word]) for word, value in zip(words[::2], words[1::2], strict=True)}
    )


def _value(name: str, text: str, kind: Any) -> Any:
    """Return the value of an option as its type; names stay text."""
    try:
        if kind in (float, int):
            return kind(text)
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
    except (ValueError, KeyError):
        raise SinkgateError(f"{name} is {text!r}; expected {'true or false' if kind is bool else 'a number'}") from None
    if "tuple[tuple" in str(kind):
        pairs = re.findall(r"(\d+)\.(\d+)", text)
        if "+".join(".".join(pair) for pair in pairs) != text:
            raise SinkgateError(f"{name} is {text!r}; expected layer and unit of each neuron, such as 5.120+4.31")
        return tuple((int(layer), int(unit)) for layer, unit in pairs)
    if "tuple" in str(kind):
        try:
            return tuple(typed_numbers(text.replace("+", ",")))
        except ValueError:
            raise SinkgateError(f"{name} is {text!r}; expected whole numbers such as 9-14, 3,6 or 3+6") from None
    return text


def read_method(path: str | Path, vlm: VLM, any_model: bool = False) -> Method:
    """Read learned gates, a LoRA or a reweighting from their folder, or fixed gates from their file.

    Args:
        path: folder or file.
        vlm: the model to use them on.
        any_model: accept what was made for another model, where shapes fit.

    Raises:
        SinkgateError: they cannot be read, or do not fit the model.
    """
    path = Path(path)
    if not path.is_dir():
        return Fixed(load_gates(path).for_model(vlm, any_model))
    if (path / "adapter_config.json").exists():
        return LoRA.from_pretrained(path, vlm, any_model)
    kind = Reweight if (path / "reweight_config.json").exists() else LSG
    method = kind.from_pretrained(path)
    method.check_fits(vlm, any_model)
    return method.to(vlm.device)
