"""Linear probes on hidden states of V-sinks, L-sinks and ordinary tokens (paper, section 3.2).

The states are those that `sinkgate.studies.features` stores, read one place at a time. Each draw of ordinary tokens has its own split
into training and test pictures, which all groups share; so every group has a mean and a deviation over draws, also the groups without
random draws. The splits overlap: the deviation is descriptive, not a standard error.

Shapes: n pictures, G = 2 + draws groups (V-sinks, L-sinks, draws of ordinary tokens), D width, K labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from sinkgate.errors import SinkgateError
from sinkgate.output import steps
from sinkgate.studies.features import places_of, read_states, read_targets
from sinkgate.studies.results import Results

SLOTS = {"v_sink": 0, "l_sink": 1, "ordinary": 2}  # first index of a group among G
LABELS = ("true", "shuffled")
KEY = ("target", "place", "group", "draw")
REGULARISERS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C; chosen by us
FOLDS = 5  # chosen by us
MAX_ITER = 1000
MEASURES = ["accuracy", "mean_average_precision"]


class Probed(NamedTuple):
    """Scores of a probe on test pictures, and its training data.

    ``accuracy`` in [0, 1], for multi-label targets the mean over labels; ``mean_average_precision`` in [0, 1], over the classes (one
    against the rest) or labels of the test pictures; ``chance``, the accuracy of the most frequent answer of the test; ``regulariser``, the
    chosen C, the median over labels; ``left_out``, the number of classes or labels that are too rare in training; ``train`` and ``test``,
    numbers of pictures. NaN if there is nothing to train on or to test.
    """

    accuracy: float
    mean_average_precision: float
    chance: float
    regulariser: float
    left_out: int
    train: int
    test: int


def probe(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    regularisers: Sequence[float] = REGULARISERS,
    folds: int = FOLDS,
    seed: int | Sequence[int] = 0,
) -> dict[str, Probed]:
    """Train and test a linear probe: standardised features, logistic regression with an L2 penalty. Return its scores by ``LABELS``.

    A multi-label target has one binary probe for each label. The strength of the penalty is chosen by cross-validated log loss on the
    training data. A class with fewer than ``folds`` training pictures is left out of the training, and counts as wrong in the test; a label
    with fewer positive or negative ones is left out of both. The control, "shuffled", is the same probe with the same penalty after a
    permutation of the training labels.

    Args:
        train: features, (n, D).
        train_labels: classes, (n,), or labels, (n, K) boolean.
        test: features, (n, D).
        test_labels: as ``train_labels``.
        regularisers: values of C to choose from, positive.
        folds: folds of the cross-validation, 2 or more.
        seed: of the permutation.

    Raises:
        ValueError: shapes do not fit each other, or features are not finite.

    Example:
        >>> probe(states[:70], classes[:70], states[70:], classes[70:])["true"].accuracy
    """
    if train_labels.ndim == 2:
        counts = np.minimum(train_labels.sum(0), (~train_labels).sum(0))
        frequent, needed = counts >= folds, 1
        train_labels, test_labels = train_labels[:, frequent], test_labels[:, frequent]
    else:
        classes, counts = np.unique(train_labels, return_counts=True)
        frequent, needed = counts >= folds, 2
        often = np.isin(train_labels, classes[frequent])
        train, train_labels = train[often], train_labels[often]
    counted: Any = {"left_out": int((~frequent).sum()), "train": len(train), "test": len(test)}
    if not len(test) or frequent.sum() < needed:
        return dict.fromkeys(LABELS, Probed(np.nan, np.nan, np.nan, np.nan, **counted))
    cv = StratifiedKFold(folds, shuffle=True, random_state=0)
    choice: Any = {"Cs": sorted(regularisers), "cv": cv, "scoring": _log_likelihood, "max_iter": MAX_ITER}
    fitted = [_fit(train, column, LogisticRegressionCV(**choice)) for column in _columns(train_labels)]
    penalties = [float(np.ravel(model.named_steps["model"].C_)[0]) for model in fitted]
    shuffled = _columns(np.random.default_rng(seed).permutation(train_labels))
    plain = [LogisticRegression(C=C, max_iter=MAX_ITER) for C in penalties]
    control = [_fit(train, column, model) for column, model in zip(shuffled, plain, strict=True)]
    counted |= {"chance": _chance(test_labels), "regulariser": float(np.median(penalties))}
    return {
        labels: Probed(*_scores(models, test, test_labels), **counted)
        for labels, models in zip(LABELS, (fitted, control), strict=True)
    }


def _columns(labels: np.ndarray) -> list[np.ndarray]:
    """Return the targets of the single models: the classes, or each label."""
    return list(labels.T) if labels.ndim == 2 else [labels]


def _fit(train: np.ndarray, labels: np.ndarray, model: LogisticRegression) -> Pipeline:
    with warnings.catch_warnings(), config_context(assume_finite=True, skip_parameter_validation=True):
        # only predictions count, converged or not; and the arguments whose defaults will change make no difference here
        for kind in (ConvergenceWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        return Pipeline([("scale", StandardScaler()), ("model", model)]).fit(train, labels)


def _log_likelihood(model: LogisticRegression, features: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean log probability of the labels; scikit-learn's own checks its input for longer than a small fit takes."""
    probabilities = model.predict_proba(features)
    right = probabilities[np.arange(len(labels)), np.searchsorted(model.classes_, labels)]
    return float(np.log(right.clip(np.finfo(right.dtype).eps)).mean())


def _scores(models: list[Pipeline], test: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return accuracy and mean average precision."""
    probabilities = [model.predict_proba(test) for model in models]
    if labels.ndim == 2:
        ranking, truth = np.stack([each[:, 1] for each in probabilities], 1), labels
        predicted = ranking > 0.5
    else:
        classes = models[0].classes_
        ranking, truth = probabilities[0], labels[:, None] == classes
        predicted = classes[ranking.argmax(1)]
    precision = [average_precision_score(truth[:, k], ranking[:, k]) for k in np.flatnonzero(truth.any(0))]
    return float((predicted == labels).mean()), float(np.mean(precision)) if precision else np.nan


def _chance(labels: np.ndarray) -> float:
    if labels.ndim == 2:
        return float(np.maximum(labels.mean(0), 1 - labels.mean(0)).mean())
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))


@dataclass(frozen=True)
class Probes:
    """Study that fits probes, one place in a unit: the table ``scores``, with target, place, group, labels, draw and the fields of `Probed`.

    Rows with ``shuffled`` labels are the control: the same probe after a permutation of the training labels. A group that no picture has
    at a place has no rows there.

    Args:
        parts: folders of the parts that `Features` wrote.
        model: description of the model for the record.
        data: description of the pictures for the record.
        targets: names of targets; all if None.
        test: share of the pictures to test on, in (0, 1); chosen by us.
        regularisers: values of C to choose from; chosen by us.
        folds: folds of the cross-validation that chooses C; chosen by us.
        shared: probe all groups on the same pictures, those that have every group that any picture has at this place.
            If False, each group on the pictures that have it; rare groups are then compared across different pictures.
        seed: of splits and permutations.
        jobs: processes that fit side by side; -1 is one for each core.

    Raises:
        SinkgateError: an argument is wrong, no picture has such a target, or a target is a class in one picture and a list in another.

    Example:
        >>> results = run(Probes.of(Results.load("runs/features"), shared=True), "runs/probes")
        >>> advantage(results.table("scores"))
    """

    parts: Sequence[Path]
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    targets: Sequence[str] | None = None
    test: float = 0.3
    regularisers: Sequence[float] = REGULARISERS
    folds: int = FOLDS
    shared: bool = False
    seed: int = 0
    jobs: int = 1
    kind: ClassVar[str] = "probes"

    @classmethod
    def of(cls, features: Results, **options: Any) -> Probes:
        """Return the probes of a finished features study, whose model, data and settings become part of their identity."""
        about = features.about
        return cls(features.parts, about["model"], {**about["data"], "features": about["settings"]}, **options)

    def __post_init__(self) -> None:
        if not self.parts:
            raise SinkgateError("there are no features to probe; expected the parts of a features study")
        if not 0 < self.test < 1:
            raise SinkgateError(f"test is {self.test}; expected a share between 0 and 1")
        if self.folds < 2 or not self.regularisers or min(self.regularisers) <= 0:
            raise SinkgateError(
                f"folds is {self.folds}, regularisers are {tuple(self.regularisers)}; expected 2 folds or more and positive numbers"
            )

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "targets": list(self.truths),
            "test": self.test,
            "regularisers": list(self.regularisers),
            "folds": self.folds,
            "shared": self.shared,
            "seed": self.seed,
        }

    @cached_property
    def places(self) -> list[str]:
        """The places that have features, in the order of the model."""
        return places_of(self.parts[0])

    @cached_property
    def truths(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Target -> mask of the pictures with a known truth, (n,) boolean, and labels as `probe` takes them."""
        truths = read_targets(self.parts)
        if unknown := set(self.targets or ()) - set(truths):
            raise SinkgateError(f"there is no target {min(unknown)!r}; these pictures have {', '.join(truths)}")
        return {name: _labels(name, truths[name]) for name in self.targets or truths}

    @property
    def units(self) -> int:
        return len(self.places)

    def work(self, unit: int) -> dict[str, pd.DataFrame]:
        place = self.places[unit]
        states = read_states(self.parts, place)  # G, n, D
        present = np.isfinite(states.sum(2))
        if self.shared:
            present &= present[present.any(1)].all(0)
        draws = range(len(states) - 2)
        tests = [split(states.shape[1], self.test, (self.seed, draw)) for draw in draws]
        options = {"regularisers": self.regularisers, "folds": self.folds}
        keys, calls = [], []
        for (target, (known, labels)), group, draw in product(self.truths.items(), SLOTS, draws):
            slot = SLOTS[group] + (draw if group == "ordinary" else 0)
            usable = present[slot] & known
            if usable.any():
                train, test = usable & ~tests[draw], usable & tests[draw]
                keys.append((target, place, group, draw))
                calls.append(delayed(_probe)(states[slot], labels, train, test, (self.seed, draw, 1), options))
        # one thread, as joblib sets for several jobs: on a loaded machine several BLAS threads take ten times as long
        with threadpool_limits(1):
            fits: Any = Parallel(n_jobs=self.jobs, return_as="generator")(calls)
            fitted = list(steps(fits, "probes", len(calls)))
        rows = [
            {**dict(zip(KEY, key, strict=True)), "labels": labels, **score._asdict()}
            for key, scores in zip(keys, fitted, strict=True)
            for labels, score in scores.items()
        ]
        return {"scores": pd.DataFrame(rows)}


def split(count: int, test: float, seed: tuple[int, int]) -> np.ndarray:
    """Return the mask of the test pictures among ``count``, (count,) boolean."""
    return np.random.default_rng(seed).permutation(count) < round(test * count)


def _probe(
    states: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray, seed: Any, options: dict[str, Any]
) -> dict[str, Probed]:
    """Call `probe` on rows of arrays that joblib shares between processes."""
    return probe(states[train], labels[train], states[test], labels[test], seed=seed, **options)


def _labels(name: str, truths: list[str | list[str] | None]) -> tuple[np.ndarray, np.ndarray]:
    known = np.array([truth is not None for truth in truths])
    classes = [truth or "" for truth in truths if not isinstance(truth, list)]
    if len(classes) == len(truths):
        return known, np.array(classes)
    present = [truth or () for truth in truths if not isinstance(truth, str)]
    if len(present) < len(truths):
        raise SinkgateError(
            f"target {name!r} is one class in some pictures and a set of labels in others; expected either"
        )
    names = sorted({label for labels in present for label in labels})
    return known, np.array([[label in labels for label in names] for labels in present], dtype=bool)


# --- reading the results


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation (``_std``) of both measures over draws, by target, place, group and labels.

    ``chance``, ``train`` and ``test`` are means; ``draws`` counts those that have scores.
    """
    return _over_draws(scores, ["target", "place", "group", "labels"], ["chance", "train", "test"])


def against_shuffled(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `summary` that have scores, with ``shuffled``, the control's accuracy.

    Columns: target, place, group, both measures with ``_std``, shuffled, chance, and ``train`` and ``test`` pictures.
    """
    key = ["target", "place", "group"]
    each = summary(scores).dropna(subset=["accuracy"])
    control = each.query("labels == 'shuffled'")[[*key, "accuracy"]].rename(columns={"accuracy": "shuffled"})
    both = each.query("labels == 'true'").merge(control, on=key, how="left")
    measures = [name for measure in MEASURES for name in (measure, f"{measure}_std")]
    return both[[*key, *measures, "shuffled", "chance", "train", "test"]]


def advantage(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the lead of V-sinks and L-sinks over ordinary tokens, by target, place and group, in shares of one.

    Differences are taken draw by draw, on the same split; columns hold their mean and standard deviation (``_std``) for both measures. A
    group that few pictures have is compared with ordinary tokens of more and other pictures, unless the probes were ``shared``.
    """
    key = ["target", "place", "draw"]
    true = scores.query("labels == 'true'")
    sinks, ordinary = true.query("group != 'ordinary'"), true.query("group == 'ordinary'")
    both = sinks.merge(ordinary, on=key, suffixes=("", "_ordinary"))
    for measure in MEASURES:
        both[measure] = both[measure] - both[f"{measure}_ordinary"]
    return _over_draws(both, ["target", "place", "group"])


def _over_draws(scores: pd.DataFrame, key: list[str], means: Sequence[str] = ()) -> pd.DataFrame:
    columns = {measure: (measure, "mean") for measure in [*MEASURES, *means]}
    columns |= {f"{measure}_std": (measure, "std") for measure in MEASURES}
    return scores.groupby(key, sort=False).agg(**columns, draws=("accuracy", "count")).reset_index()
