"""Numbers, layers and lists in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def number(value: float) -> str:
    """Return a number with three significant digits and thousands apart.

    Example:
        >>> number(1124.7), number(0.8449), number(23.75)
        ('1,120', '0.845', '23.8')
    """
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"


def count(amount: int, noun: str) -> str:
    """Return an amount of things: "1 prompt", "2 prompts", "3 patches"."""
    return f"{amount:,} {noun if amount == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Return the plural of a noun: "layers", "patches"."""
    return f"{noun}es" if noun.endswith("ch") else f"{noun}s"


def numbered(noun: str, numbers: Sequence[int]) -> str:
    """Return things by their numbers: "dimension 507", "layers 4, 7"."""
    return f"{noun if len(numbers) == 1 else plural(noun)} {', '.join(map(str, numbers))}"


def layers(numbers: list[int]) -> str:
    """Return rising layers in words: "layer 4", "layers 1-3, 7"."""
    return f"layer{'s' * (len(numbers) > 1)} {ranges(numbers)}"


def ranges(numbers: list[int]) -> str:
    """Return rising whole numbers in words: [1, 2, 3, 7] -> "1-3, 7"."""
    parts: list[list[int]] = []
    for each in numbers:
        if parts and each == parts[-1][-1] + 1:
            parts[-1].append(each)
        else:
            parts.append([each])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def listed(names: Iterable[str]) -> str:
    """Return names as a list in words: "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def sentence(text: str) -> str:
    """Return a message with a capital letter and a full stop; an empty one stays empty."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def span(low: float, high: float) -> str:
    """Return the range that numbers lie in: "0.1-0.5", or one number where both ends have the same digits."""
    return number(high) if number(low) == number(high) else f"{number(low)}-{number(high)}"
