"""Numbers of layers, heads, tokens and scales, as users give them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, cast

import numpy as np
from torch import Tensor

from sinkgate.errors import GateError, SinkgateError

MAX_SCALE = 4.0


def typed_numbers(text: str) -> list[int]:
    """Return rising whole numbers as they are typed: "3,6,7", "4-10".

    Raises:
        ValueError: anything else, a range that falls among them.
    """
    ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    if any(len(pair) > 2 or pair[0] > pair[-1] for pair in ends):
        raise ValueError(text)
    return sorted({number for pair in ends for number in range(pair[0], pair[-1] + 1)})


def read_layers(text: str, count: int, kind: str = "layer") -> list[int]:
    """Return layers or heads as they are typed: "all", "3,6,7", "4-10".

    Args:
        text: as typed.
        count: how many there are.
        kind: "layer" or "head".

    Raises:
        GateError: anything else, or one that the model does not have.
    """
    if text == "all":
        return list(range(count))
    try:
        numbers = typed_numbers(text)
    except ValueError:
        raise GateError(f'{kind}s are "all" or numbers such as 3,6,7 or 4-10; got {text!r}') from None
    if not numbers or numbers[-1] >= count:
        raise GateError(f"{kind}s are {text!r}; the model has {kind}s 0 to {count - 1}")
    return numbers


def numbers_in_range(numbers: Any, count: int, kind: str) -> list[int]:
    """Return layers or heads as a list of indices.

    Args:
        numbers: one or several, negative from the end; as typed ("3,6,7" or "12-29"); None for all.
        count: how many there are.
        kind: "layer" or "head".

    Raises:
        GateError: something else, or one that does not exist.
    """
    if numbers is None:
        return list(range(count))
    if isinstance(numbers, str):
        return read_layers(numbers, count, kind)
    try:
        several = list(numbers)
    except TypeError:  # a single one, maybe numpy's or torch's
        several = [numbers]
    indices = [index(each, f"a {kind}") for each in several]
    outside = [each for each in indices if not -count <= each < count]
    if outside:
        raise GateError(f"there is no {kind} {outside[0]}; the table has {kind}s 0 to {count - 1}")
    return indices


def number(scale: Any) -> float:
    """Return a scale of any kind as Python's own.

    Raises:
        GateError: it is no number.
    """
    try:
        return float(scale)
    except (TypeError, ValueError, RuntimeError) as error:
        raise GateError(f"a scale is a number from 0 to {MAX_SCALE:g}; got {scale!r}") from error


def index(number: Any, kind: str) -> int:
    """Return a whole number of any kind as Python's own.

    Raises:
        GateError: it is none.
    """
    plain = python_numbers(number)
    if isinstance(plain, bool) or not isinstance(plain, int):
        raise GateError(f"{kind} is a whole number; got {number!r}")
    return plain


def position(number: Any, count: int, kind: str) -> int:
    """Return the position of one among ``count``, negative numbers from the end.

    Raises:
        GateError: it is no whole number, or there is none.
    """
    plain = index(number, kind)
    if not -count <= plain < count:
        raise GateError(f"{kind} is a number from 0 to {count - 1}; got {plain}")
    return plain % count


def whole_numbers(numbers: Any, count: int, noun: str) -> list[int]:
    """Return whole numbers, of Python, NumPy or torch, as a list; raises SinkgateError where one is not from 0 to below ``count``, or there is none."""
    try:
        several = list(numbers)
    except TypeError:  # a single one
        several = [numbers]
    with suppress(GateError):
        indices = [index(number, f"a {noun}") for number in several]
        if indices and all(0 <= number < count for number in indices):
            return indices
    raise SinkgateError(
        f"got {f'{noun} {several}' if several else 'no ' + noun}; expected whole numbers from 0 to {count - 1}"
    )


def python_numbers(value: Any) -> Any:
    """Return numbers of NumPy and torch, alone or in a list, as Python's own; anything else as it is."""
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return cast(Any, value).tolist()
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value
    return [python_numbers(element) for element in cast(Iterable[Any], value)]


def is_column(values: object) -> bool:
    """Return whether this is a list of numbers, one at least."""
    if not isinstance(values, list) or not values:
        return False
    return all(isinstance(each, int | float) and not isinstance(each, bool) for each in cast(list[Any], values))


def to_float(value: float) -> float:
    """Return a number of a JSON file; infinity for integers that no float holds."""
    try:
        return float(value)
    except OverflowError:  # JSON allows integers that no float holds
        return math.inf


def short(column: Tensor) -> list[float]:
    """Return float32 numbers with the fewest digits that read back, as NumPy prints them: 0.2 stays 0.2."""
    return [float(str(value)) for value in column.numpy()]
