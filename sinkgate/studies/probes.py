"""What sinks know of the picture: linear probes on hidden states of V-sinks, L-sinks and ordinary tokens (paper, section 3.2).

The states are those that `sinkgate.studies.features` keeps, and are read again a place at a time. Each draw of ordinary tokens has a split
into training and test pictures of its own, which all groups share; so a mean and a deviation over draws stand beside every group,
also where nothing is drawn. The splits overlap: the deviation describes, it is no standard error.

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
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from sinkgate.errors import SinkgateError
from sinkgate.studies.features import places_of, read_states, read_targets
from sinkgate.studies.results import Results

SLOTS = {"v_sink": 0, "l_sink": 1, "ordinary": 2}  # where groups begin among G
LABELS = ("true", "shuffled")
KEY = ("target", "place", "group", "draw")
REGULARISERS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C; ours
FOLDS = 5  # ours
MAX_ITER = 1000
MEASURES = ["accuracy", "mean_average_precision"]


class Probed(NamedTuple):
    """What a probe reached on test pictures, and how it was made.

    ``accuracy`` in [0, 1], the mean over labels where there are many; ``mean_average_precision`` in [0, 1], over classes (one against the
    rest) or labels that the test has; ``chance`` the accuracy of always saying what is most common in the test; ``regulariser`` the C
    that was chosen, the median of the labels'; ``left_out`` classes or labels that training shows too rarely; ``train`` and ``test`` how
    many pictures. NaN where there is nothing to train on or to test.
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
    """Train a linear probe and test it: standardised features, logistic regression with an L2 penalty. ``LABELS`` -> what was reached.

    Many labels are so many probes, each yes or no. The strength of the penalty is chosen by cross-validated log loss on the training
    data alone. What has fewer than ``folds`` training pictures cannot be: a class is then left out of the training (and wrong
    where the test has it), a label with so few of either answer altogether. The control is the same probe, with the same
    penalty, after the training pictures have changed their labels among themselves.

    Shapes: train and test (n, D); train_labels and test_labels (n,) classes, or (n, K) boolean for labels of which many may hold.
    """
    if train_labels.ndim == 2:
        counts = np.minimum(train_labels.sum(0), (~train_labels).sum(0))
        kept, needed = counts >= folds, 1
        train_labels, test_labels = train_labels[:, kept], test_labels[:, kept]
    else:
        classes, counts = np.unique(train_labels, return_counts=True)
        kept, needed = counts >= folds, 2
        often = np.isin(train_labels, classes[kept])
        train, train_labels = train[often], train_labels[often]
    counted: Any = {"left_out": int((~kept).sum()), "train": len(train), "test": len(test)}
    if not len(test) or kept.sum() < needed:
        return dict.fromkeys(LABELS, Probed(np.nan, np.nan, np.nan, np.nan, **counted))
    cv = StratifiedKFold(folds, shuffle=True, random_state=0)
    choice: Any = {"Cs": sorted(regularisers), "cv": cv, "scoring": "neg_log_loss", "max_iter": MAX_ITER}
    fitted = [_fit(train, column, LogisticRegressionCV(**choice)) for column in _columns(train_labels)]
    chosen = [float(np.ravel(model.named_steps["model"].C_)[0]) for model in fitted]
    shuffled = _columns(np.random.default_rng(seed).permutation(train_labels))
    control = [
        _fit(train, column, LogisticRegression(C=C, max_iter=MAX_ITER))
        for column, C in zip(shuffled, chosen, strict=True)
    ]
    counted |= {"chance": _chance(test_labels), "regulariser": float(np.median(chosen))}
    return {
        labels: Probed(*_judge(models, test, test_labels), **counted)
        for labels, models in zip(LABELS, (fitted, control), strict=True)
    }


def _columns(labels: np.ndarray) -> list[np.ndarray]:
    """What one model each is fitted to: the classes, or every label."""
    return list(labels.T) if labels.ndim == 2 else [labels]


def _fit(train: np.ndarray, labels: np.ndarray, model: LogisticRegression) -> Pipeline:
    with warnings.catch_warnings():
        # a fit is judged by what it predicts, converged or not; and arguments whose defaults will change make no difference here
        for kind in (ConvergenceWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        return Pipeline([("scale", StandardScaler()), ("model", model)]).fit(train, labels)


def _judge(models: list[Pipeline], test: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Accuracy and mean average precision."""
    sure = [model.predict_proba(test) for model in models]
    if labels.ndim == 2:
        rank, truth = np.stack([each[:, 1] for each in sure], 1), labels
        said = rank > 0.5
    else:
        classes = models[0].classes_
        rank, truth = sure[0], labels[:, None] == classes
        said = classes[rank.argmax(1)]
    precision = [average_precision_score(truth[:, k], rank[:, k]) for k in np.flatnonzero(truth.any(0))]
    return float((said == labels).mean()), float(np.mean(precision)) if precision else np.nan


def _chance(labels: np.ndarray) -> float:
    if labels.ndim == 2:
        return float(np.maximum(labels.mean(0), 1 - labels.mean(0)).mean())
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))


@dataclass(frozen=True)
class Probes:
    """The study that fits probes, a place a unit: the table ``scores``, a row a target, place, group, labels and draw, as `Probed`.

    With ``shuffled`` labels the training pictures have changed their truths among themselves: what the same probe reaches then is chance.
    A group that no picture has at a place has no rows there.

    Args:
        parts: folders of the parts that `Features` wrote.
        model: what made the features, in words.
        data: what pictures they were made of, in words.
        targets: which; None is all.
        test: share of the pictures to test on, in (0, 1); ours.
        regularisers: the values of C to choose from; ours.
        folds: of the cross-validation that chooses; ours.
        shared: probe all groups on the same pictures, those that have every group that any picture has at this place.
            Otherwise each group on the pictures that have it, and groups that few have are compared across pictures.
        seed: of splits and shuffling.
        jobs: processes that fit side by side.

    Raises:
        SinkgateError: an argument is wrong, no picture has such a target, or it is a class in one and labels in another.
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
        """The probes of a finished study of features; what the features were made with is part of what the probes are."""
        told = features.about
        return cls(features.parts, told["model"], {**told["data"], "features": told["settings"]}, **options)

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
        """Where there are features, in the order of the model."""
        return places_of(self.parts[0])

    @cached_property
    def truths(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Target -> for which pictures it is known, (n,) boolean, and its labels as `probe` takes them."""
        told = read_targets(self.parts)
        if unknown := set(self.targets or ()) - set(told):
            raise SinkgateError(f"there is no target {min(unknown)!r}; these pictures have {', '.join(told)}")
        return {name: _labels(name, told[name]) for name in self.targets or told}

    @property
    def units(self) -> int:
        return len(self.places)

    def work(self, unit: int) -> dict[str, pd.DataFrame]:
        place = self.places[unit]
        states = read_states(self.parts, place)  # G, n, D
        there = np.isfinite(states.sum(2))
        if self.shared:
            there &= there[there.any(1)].all(0)
        draws = range(len(states) - 2)
        tests = [split(states.shape[1], self.test, (self.seed, draw)) for draw in draws]
        options = {"regularisers": self.regularisers, "folds": self.folds}
        keys, calls = [], []
        for (target, (known, labels)), group, draw in product(self.truths.items(), SLOTS, draws):
            slot = SLOTS[group] + (draw if group == "ordinary" else 0)
            usable = there[slot] & known
            if usable.any():
                train, test = usable & ~tests[draw], usable & tests[draw]
                keys.append((target, place, group, draw))
                calls.append(delayed(_probe)(states[slot], labels, train, test, (self.seed, draw, 1), options))
        with threadpool_limits(
            1
        ):  # joblib does so with several jobs; beside other load, BLAS threads cost ten times the time
            reached: Any = Parallel(n_jobs=self.jobs)(calls)
        rows = [
            {**dict(zip(KEY, key, strict=True)), "labels": labels, **score._asdict()}
            for key, scores in zip(keys, reached, strict=True)
            for labels, score in scores.items()
        ]
        return {"scores": pd.DataFrame(rows)}


def split(count: int, test: float, seed: tuple[int, int]) -> np.ndarray:
    """Which of ``count`` pictures are for testing, (count,) boolean."""
    return np.random.default_rng(seed).permutation(count) < round(test * count)


def _probe(
    states: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray, seed: Any, options: dict[str, Any]
) -> dict[str, Probed]:
    """`probe` on rows of arrays that joblib shares between processes."""
    return probe(states[train], labels[train], states[test], labels[test], seed=seed, **options)


def _labels(name: str, told: list[str | list[str] | None]) -> tuple[np.ndarray, np.ndarray]:
    known = np.array([truth is not None for truth in told])
    classes = [truth or "" for truth in told if not isinstance(truth, list)]
    if len(classes) == len(told):
        return known, np.array(classes)
    present = [truth or () for truth in told if not isinstance(truth, str)]
    if len(present) < len(told):
        raise SinkgateError(
            f"target {name!r} is one class in some pictures and a set of labels in others; expected either"
        )
    names = sorted({label for labels in present for label in labels})
    return known, np.array([[label in labels for label in names] for labels in present], dtype=bool)


# --- what the scores say


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Over draws, by target, place, group and labels: mean and standard deviation (``_std``) of both measures.

    ``chance``, ``train`` and ``test`` are means; ``draws`` counts those that could be measured.
    """
    return _over_draws(scores, ["target", "place", "group", "labels"], ["chance", "train", "test"])


def against_shuffled(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `summary` that could be measured, with ``shuffled``, the control's accuracy, beside them.

    Columns: target, place, group, both measures with ``_std``, shuffled, chance, and ``train`` and ``test`` pictures.
    """
    key = ["target", "place", "group"]
    each = summary(scores).dropna(subset=["accuracy"])
    control = each.query("labels == 'shuffled'")[[*key, "accuracy"]].rename(columns={"accuracy": "shuffled"})
    both = each.query("labels == 'true'").merge(control, on=key, how="left")
    measures = [name for measure in MEASURES for name in (measure, f"{measure}_std")]
    return both[[*key, *measures, "shuffled", "chance", "train", "test"]]


def advantage(scores: pd.DataFrame) -> pd.DataFrame:
    """How much better V-sinks and L-sinks are than ordinary tokens, by target, place and group, in shares of one.

    The differences are taken draw by draw, on the same split; their mean and standard deviation (``_std``) for both measures. Where few
    pictures have a group, it is compared with ordinary tokens of more and other pictures, unless the probes were ``shared``.
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
