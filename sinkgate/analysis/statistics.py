"""Statistics of paired comparisons: the same samples under two settings.

Shapes: S samples, M settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binom, norm

from sinkgate.analysis.scores import CountedScore

Floats = NDArray[np.float64]
DRAWS = 2000  # of the bootstrap
STORED = 1 << 20  # numbers, 8 MB: the most draws that are kept for the next interval of as many samples
FLIPS = 10_000  # of signs, in a test that cannot try all
LEVEL, POWER = 0.05, 0.8  # of tests; the chance to find the smallest effect
INTERVAL = (1 - 0.95) / 2, (1 + 0.95) / 2


def intervals(differences: Any, draws: int = DRAWS, seed: int = 0, pictures: Any = None) -> tuple[Floats, Floats]:
    """Return 95 % percentile bootstrap intervals of the mean over samples; all settings share their draws, so they stay paired.

    Args:
        differences: paired differences.
        draws: number of draws.
        seed: of the draws.
        pictures: a label for each sample; those with the same label, questions about one picture, are drawn together. None: each by itself.

    Shapes: differences (S, M), pictures (S,) -> low (M,), high (M,).
    """
    values = np.asarray(differences, dtype=np.float64)
    sums, sizes = (values, np.ones(len(values))) if pictures is None else _by_picture(values, pictures)
    count = len(sums)
    parts = [drawn @ sums / (drawn @ sizes)[:, None] for drawn in _resamples(count, draws, seed)]
    low, high = np.quantile(np.concatenate(parts), INTERVAL, axis=0)
    return low, high


def _resamples(count: int, draws: int, seed: int) -> Iterable[Floats]:
    """Return how often each of ``count`` is in each draw with replacement, in parts of (draws, count)."""
    return _stored_resamples(count, draws, seed) if count * draws <= STORED else _drawn_resamples(count, draws, seed)


def _drawn_resamples(count: int, draws: int, seed: int) -> Iterator[Floats]:
    rng = np.random.default_rng(seed)
    for start in range(0, draws, 250):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(250, draws - start))
        yield drawn.astype(np.float64)


@lru_cache(maxsize=4)
def _stored_resamples(count: int, draws: int, seed: int) -> tuple[Floats, ...]:
    return tuple(_drawn_resamples(count, draws, seed))  # tasks of a study are often equally large


def _by_picture(values: Floats, pictures: Any) -> tuple[Floats, Floats]:
    """Return sums and numbers of the samples of each picture: (S, M) -> (pictures, M), (pictures,)."""
    codes, names = pd.factorize(np.asarray(pictures))
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, codes, values)
    return sums, np.bincount(codes).astype(np.float64)


def flip_test(differences: Any, pictures: Any, seed: int = 0) -> Floats:
    """Return the two-sided p of paired differences whose samples share pictures: the signs of whole pictures are flipped.

    The share of sign patterns with a sum at least as far from 0; of all patterns where `FLIPS` suffice for them, else of so many random ones,
    the observed one among them. With one sample a picture and differences of -1, 0 and 1 this is `sign_test`.

    Shapes: differences (S, M), pictures (S,) -> (M,).
    """
    by_picture, _ = _by_picture(np.asarray(differences, dtype=np.float64), pictures)
    rng = np.random.default_rng(seed)
    result = np.ones(by_picture.shape[1])
    for column, values in enumerate(by_picture.T):
        values = values[values != 0]
        if not len(values):
            continue
        exact = 2 ** len(values) <= FLIPS
        flips = (
            (np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1
            if exact
            else rng.integers(0, 2, size=(FLIPS, len(values)))
        )
        sums = values.sum() - 2 * (flips.astype(np.float64) @ values)
        far = int((np.abs(sums) >= abs(values.sum()) - 1e-9).sum())
        result[column] = far / len(flips) if exact else (far + 1) / (FLIPS + 1)
    return result


def sign_test(wins: Any, losses: Any) -> Floats:
    """Return the exact two-sided p of paired yes-or-no outcomes (McNemar's exact test), from the numbers of samples that became right and wrong."""
    wins, losses = np.asarray(wins), np.asarray(losses)
    return np.minimum(1.0, 2 * binom.cdf(np.minimum(wins, losses), wins + losses, 0.5))


def holm(p: Any) -> Floats:
    """Return p values corrected for their number (Holm, 1979): the chance of any false positive among all stays below the level."""
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1.0, stepped)
    return corrected


def paired_test(differences: Any, pictures: Any = None, seed: int = 0) -> Floats:
    """Return the two-sided p of paired differences: of the sign test, or of `flip_test` where several samples share a picture.

    Shapes: differences (S, M), pictures (S,) -> (M,).
    """
    if shared(pictures) is not None:
        return flip_test(differences, pictures, seed=seed)
    values = np.asarray(differences)
    return sign_test((values > 0).sum(0), (values < 0).sum(0))


def shared(pictures: Any) -> Any:
    """Return the labels of pictures if several samples have the same, else None."""
    return None if pictures is None or pd.Series(np.asarray(pictures)).is_unique else pictures


def smallest_effect(differences: Any, tests: int = 1, pictures: Any = None) -> Floats:
    """Return the smallest mean difference that a study of this size and noise can find.

    Two bounds, the larger counts. The sign test of one among ``tests`` corrected tests needs so many samples (or pictures) that all change in
    the same direction, each by the mean size of the changes at hand (1 a sample if nothing changed). And the mean has to stand out from its own
    standard error with the given power. Infinite if even a change of every sample would not be significant.

    Args:
        differences: paired differences, (S,) or (S, M), in [-1, 1].
        tests: number of tests that are corrected together, at the level `LEVEL`; the chance to find the effect is `POWER`.
        pictures: a label for each sample, as in `intervals`.

    Returns:
        A share in [0, 1] or infinity, scalar or (M,).
    """
    count, groups, by_sign, by_noise = _bounds(differences, tests, pictures)
    return np.where(_fewest(tests) > groups, np.inf, np.maximum(by_sign / count, by_noise / np.sqrt(count)))


def questions_needed(differences: Any, effect: float = 0.01, pictures: Any = None) -> Floats:
    """Return how many questions like these show a mean difference, by the bounds of `smallest_effect`.

    Args:
        differences: paired differences of a study at hand, (S,) or (S, M), in [-1, 1]; the larger the pilot, the better its noise is known.
        effect: difference to show by a test by itself, a share in (0, 1]; one point by default.
        pictures: a label for each sample, as in `intervals`; as many questions a picture are assumed.

    Returns:
        A number of questions, scalar or (M,).

    Raises:
        ValueError: the effect is out of its range.

    Example:
        >>> questions_needed([0, 1, 0, -1, 0, 0, 1, 0, 0, 0] * 10, effect=0.05)
        np.float64(920.0)
    """
    if not 0 < effect <= 1:
        raise ValueError(f"effect is {effect}; expected a share above 0, up to 1")
    count, groups, by_sign, by_noise = _bounds(differences, 1, pictures)
    fewest = _fewest(1) * count / groups  # so many pictures at least
    return np.ceil(np.maximum(fewest, np.maximum(by_sign / effect, (by_noise / effect) ** 2)))


def _fewest(tests: int) -> int:
    """Return the number of samples, all changed in one direction, from which a corrected sign test is significant."""
    return int(np.ceil(np.log2(2 * tests / LEVEL)))  # 2 * 0.5^fewest <= LEVEL / tests


def _bounds(differences: Any, tests: int, pictures: Any) -> tuple[int, int, Floats, Floats]:
    """Return numbers of samples and pictures, and both bounds times the number of samples, and its root."""
    values = np.asarray(differences, dtype=np.float64)
    count, columns = len(values), values.reshape(len(values), -1)
    sums, sizes = (columns, np.ones(count)) if shared(pictures) is None else _by_picture(columns, pictures)
    groups = len(sums)
    changed = np.abs(sums).sum(0) / np.maximum(1, (sums != 0).sum(0))
    by_sign = _fewest(tests) * np.where(changed > 0, changed, count / groups)
    residuals = ((sums - sizes[:, None] * columns.mean(0)) ** 2).sum(0)
    spread = np.sqrt(residuals * groups / max(groups - 1, 1) / count)
    by_noise = (norm.isf(LEVEL / tests / 2) + norm.ppf(POWER)) * spread
    return count, groups, by_sign.reshape(values.shape[1:]), by_noise.reshape(values.shape[1:])


def compared(right: pd.DataFrame, base: pd.Series, seed: int = 0, pictures: pd.Series | None = None) -> pd.DataFrame:
    """Compare each setting with the unmodified model on the same samples.

    Args:
        right: one row a sample, one column a setting; whether the answer was right.
        base: the same of the unmodified model.
        seed: of the bootstrap.
        pictures: a label for each sample, as in `intervals`; where several samples share one, p is that of `flip_test`.

    Returns:
        One row a setting: samples, base and accuracy (shares in [0, 1]), change with its 95 % interval low to high, wins and
        losses (samples that became right, and wrong), effect (mean over standard deviation of the paired differences, 0
        where nothing changed), p of the sign test or of `flip_test`.
    """
    correct, plain = right.to_numpy(dtype=np.int8), base.to_numpy(dtype=np.int8)[:, None]
    differences = correct - plain
    low, high = intervals(differences, seed=seed, pictures=shared(pictures))
    wins, losses = (differences > 0).sum(0), (differences < 0).sum(0)
    spread = differences.std(0, ddof=1) if len(differences) > 1 else np.zeros(differences.shape[1])
    change = differences.mean(0)
    return pd.DataFrame(
        {
            "samples": len(differences),
            "base": plain.mean(),
            "accuracy": correct.mean(0),
            "change": change,
            "low": low,
            "high": high,
            "wins": wins,
            "losses": losses,
            "effect": np.divide(change, spread, out=np.zeros_like(change), where=spread > 0),
            "p": paired_test(differences, pictures, seed),
        },
        index=right.columns,
    )


def drawn_counts(size: int, draws: int, seed: int = 0, pictures: Any = None) -> Floats:
    """Return how often each sample is in each draw with replacement, (draws, size); ``pictures`` as in `intervals`."""
    codes = np.arange(size) if pictures is None else pd.factorize(np.asarray(pictures))[0]
    count = int(codes.max()) + 1 if size else 0
    rng = np.random.default_rng(seed)
    drawn = [np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(draws)]
    return np.stack(drawn)[:, codes].astype(np.float64)


def score_interval(
    score: Callable[[pd.DataFrame], float],
    frame: pd.DataFrame,
    base: pd.DataFrame,
    draws: int = 500,
    seed: int = 0,
    pictures: Any = None,
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the change of any score, such as a mean over categories; both share their draws.

    A `CountedScore` takes all draws at once; any other function is called for every draw. ``frame`` and ``base`` hold what the score reads, one row a sample, in the same order; ``pictures`` as in `intervals`.
    """
    counts = drawn_counts(len(frame), draws, seed, pictures)
    if isinstance(score, CountedScore):
        changes = score.of(frame, counts) - score.of(base, counts)
    else:
        rows = [np.repeat(np.arange(len(frame)), each) for each in counts.astype(int)]
        changes = [score(frame.iloc[drawn]) - score(base.iloc[drawn]) for drawn in rows]
    defined = [change for change in changes if not np.isnan(change)]  # a group may be missing from a draw
    if not defined:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, INTERVAL)
    return float(low), float(high)
