"""Which columns the kept ones predict, in one pass through an order of columns.

Covers: the sweep that keeps a column unless kept ones predict it, and what that claim needs in
rows. Host arrays only: one p x p Gram matrix, however many rows it came from.
Does not cover: the Gram matrix itself, the order (see `dpipe.passes`), what a later selection
predicts (see `dpipe.kernels.explained`), the strict elimination by variance inflation (see
`dpipe.kernels.vif`).
See also: docs/statistics.md, with every formula and its source.

A claim is either *by few* (at most a handful of kept columns, found by forward selection and named)
or *by all* kept columns together. Both know their degrees of freedom: R^2 is adjusted for the
number of predictors, and a claim that chance alone could have made among so many columns, and so
many sets of them, is not made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpipe.kernels.gram import (
    RESIDUAL_VARIANCE,
    TIE,
    Factor,
    Indices,
    Matrix,
    asked_first,
    check_gram,
    largest_first,
)

CHANCE = 0.01
"""Expected number of claims in a table of independent columns, at most."""

SPARED = 2 / 3
"""How much less of the most relevant column than of an irrelevant one may stay unexplained."""

_SEPARATE = 1e-4  # a predictor with less variance left beside the chosen ones adds only rounding


@dataclass(frozen=True)
class Prediction:
    """One column that kept ones predict.

    Attributes
    ----------
    index
        The column, as the matrix counts.
    r_squared
        R^2 on `partners`, or on all columns kept by then, adjusted for their number.
    predictors
        How many columns that R^2 is of.
    partners
        (column, coefficient) in terms of the unit-norm scores, largest coefficient first: the few
        predictors, or those that an exact combination needs. Empty for a claim by many.
    representative
        The predictor that the column correlates with most.
    """

    index: int
    r_squared: float
    predictors: int
    partners: tuple[tuple[int, float], ...]
    representative: int


def adjusted(r_squared: float, rows: int, predictors: int) -> float:
    """R^2 less what as many independent predictors would reach; minus infinity without freedom.

    Examples
    --------
    >>> round(adjusted(0.9, 101, 50), 3)
    0.8
    >>> adjusted(1.0, 10, 9)
    -inf
    """
    freedom = rows - 1 - predictors
    return 1 - (1 - r_squared) * (rows - 1) / freedom if freedom > 0 else -math.inf


def log_chance(r_squared: float, rows: int, predictors: int, choices: int) -> float:
    """Logarithm of a bound on the chance that one of many sets of predictors reaches an R^2.

    Parameters
    ----------
    r_squared
        The R^2 reached, not adjusted.
    rows
        Rows it was computed on.
    predictors
        Predictors it took.
    choices
        How many columns those were chosen from.

    Notes
    -----
    Of one set of s independent predictors 1 - R^2 follows Beta(df / 2, s / 2), df = n - 1 - s (the
    F test). Its lower tail at x is at most x^a / (a B(a, b)), over sqrt(1 - x) where b < 1; the
    chance of any of the C(m, s) sets is at most their number times that.

    Examples
    --------
    >>> round(math.exp(log_chance(0.5, 20, 1, 1)), 5)  # exactly 0.00049
    0.00051
    """
    a, b = (rows - 1 - predictors) / 2, predictors / 2
    if a <= 0:
        return math.inf
    left = max(1 - r_squared, np.finfo(float).tiny)
    tail = a * math.log(left) - math.log(a) + _log_gamma_ratio(a, b)
    if b < 1:
        tail -= 0.5 * math.log(max(r_squared, np.finfo(float).tiny))
    return tail + _log_binomial(choices, predictors)


def _log_gamma_ratio(a: float, b: float) -> float:
    """-log B(a, b)."""
    return math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def required_r2(threshold: float, relevance: Matrix) -> Matrix:
    """The adjusted R^2 at which each column goes: the more it tells of a target, the higher.

    Of a column that tells nothing 1 - `threshold` may stay unexplained, of the one that tells most
    a third of that: what is lost with a column is as important as the column (docs/models.md).

    Parameters
    ----------
    threshold
        R^2 at which a column goes that tells nothing.
    relevance
        (p,) how much each column tells, in shares of what the most relevant one does.

    Returns
    -------
    (p,) in whole millionths, as values are compared.

    Examples
    --------
    >>> required_r2(0.85, np.array([0.0, 0.5, 1.0])).tolist()
    [0.85, 0.9, 0.95]
    """
    return np.round(1 - (1 - threshold) * (1 - SPARED * relevance), 6)


def sweep(
    r: Matrix,
    order: Indices,
    asked: NDArray[np.bool_],
    rows: Indices,
    threshold: float | Matrix,
    most: int | None,
    few: int = 5,
) -> list[Prediction]:
    """Go through the columns in order; keep one unless kept ones predict it.

    Parameters
    ----------
    r
        (p, p) Gram matrix of unit-norm centred columns: symmetric, positive semi-definite, unit
        diagonal.
    order
        All p columns, from the one most worth keeping to the one least so.
    asked
        (p,) columns that stay whatever predicts them. They are taken first.
    rows
        (p,) rows that each column's R^2 may count on: its valid ones.
    threshold
        Adjusted R^2 at which a column goes, (p,) or one for all.
    most
        Most kept columns that a prediction may need; None for any number. An exact combination of
        any number goes either way.
    few
        Most columns looked for by forward selection, where all of them prove nothing because the
        rows are few. Not more than `most`.

    Returns
    -------
    The columns that go, in order. Whatever is not among them stays, so every column that goes is
    predicted by columns that stay.

    Raises
    ------
    ValueError
        When the arguments do not fit together or `r` has no unit diagonal.

    Notes
    -----
    p^2 m operations for m independent columns among those kept, nearly all in matrix products, and
    about 10 m for every predictor that is looked for. Memory: two matrices beside `r`, p x p and
    p x m.

    Examples
    --------
    >>> import numpy as np
    >>> a, b = np.eye(4)[:2]
    >>> scores = np.stack([a, b, (a + b) / np.sqrt(2)])
    >>> predictions = sweep(
    ...     scores @ scores.T, np.arange(3), np.zeros(3, bool), np.full(3, 100), 0.9, None
    ... )
    >>> [(one.index, one.representative, one.predictors) for one in predictions]
    [(2, 0, 2)]
    >>> [(column, round(weight, 3)) for column, weight in predictions[0].partners]
    [(0, 0.707), (1, 0.707)]
    """
    check_gram(r, order, asked, rows)
    order, n_asked = asked_first(order, asked)
    thresholds = np.broadcast_to(threshold, len(r))
    run = _Sweep(r[np.ix_(order, order)], rows[order], thresholds[order], most, few)
    run.go(n_asked)
    return [_renumbered(one, order) for one in run.predictions]


class _Sweep:
    """The sweep in positions: 0 is the first column of the order."""

    def __init__(
        self, gram: Matrix, rows: Indices, thresholds: Matrix, most: int | None, few: int
    ) -> None:
        self.gram = gram
        self.rows = rows
        self.thresholds = thresholds
        self.most = len(gram) if most is None else most
        self.few = min(few, self.most)
        self.predictions: list[Prediction] = []
        self.kept = np.zeros(len(gram), dtype=bool)
        self.factor = Factor(gram)
        self.limit = math.log(CHANCE / len(gram)) if len(gram) else 0.0

    def go(self, n_asked: int) -> None:
        """Decide every column; the first `n_asked` stay."""
        for j in range(len(self.gram)):
            left = self.factor.left(j)
            claim = None if j < n_asked else self._claim(j, left)
            if claim is not None:
                self.predictions.append(claim)
                continue
            self.kept[j] = True
            self.factor.take(j)

    def _claim(self, j: int, left: float) -> Prediction | None:
        """What predicts column `j`, of which the kept columns leave `left`; None to keep it."""
        m = len(self.factor.basis)
        if m == 0 or not reached(1 - left, self.thresholds[j]):  # fewer leave more
            return None
        exact = left < RESIDUAL_VARIANCE
        if (m <= self.most or exact) and self._holds(j, 1 - left, m, m):
            return self._by_all(j, 1 - left, named=exact or m <= self.few)
        return self._by_few(j)

    def _holds(self, j: int, r_squared: float, predictors: int, choices: int) -> bool:
        """Whether the rows of column `j` bear the claim."""
        n = int(self.rows[j])
        return (
            reached(adjusted(r_squared, n, predictors), self.thresholds[j])
            and log_chance(r_squared, n, predictors, choices) <= self.limit
        )

    def _by_all(self, j: int, r_squared: float, named: bool) -> Prediction:
        basis = np.array(self.factor.basis, dtype=np.int64)
        m = len(basis)
        if named:
            factor = self.factor.values
            weights = np.asarray(np.linalg.solve(factor[basis, :m].T, factor[j, :m]))
            return self._by_named(j, r_squared, basis, weights)
        value = adjusted(r_squared, int(self.rows[j]), m)
        return self._prediction(j, value, m, (), basis)

    def _by_few(self, j: int) -> Prediction | None:
        """Forward selection among the kept columns, as far as `few`."""
        choices = int(np.count_nonzero(self.kept[:j]))
        search = _Forward(self.gram, j, self.kept[:j])
        for size in range(1, self.few + 1):
            if not search.add():
                return None
            if self._holds(j, search.r_squared, size, choices):
                members = np.sort(np.array(search.members, dtype=np.int64))
                return self._by_named(j, search.r_squared, members, self._weights(j, members))
        return None

    def _by_named(self, j: int, r_squared: float, members: Indices, weights: Matrix) -> Prediction:
        """The claim of those that have a say: one that was taken early the others may replace."""
        partners = largest_first(members, weights)
        named = np.array([column for column, _ in partners], dtype=np.int64)
        value = adjusted(r_squared, int(self.rows[j]), len(named))
        return self._prediction(j, value, len(named), partners, named)

    def _weights(self, j: int, members: Indices) -> Matrix:
        """Least-squares coefficients of column `j` in a few others."""
        gram = self.gram[np.ix_(members, members)]
        found: Matrix = np.linalg.solve(gram, self.gram[members, j])
        return found

    def _prediction(
        self,
        j: int,
        value: float,
        predictors: int,
        partners: tuple[tuple[int, float], ...],
        among: Indices,
    ) -> Prediction:
        closeness = np.abs(self.gram[j, among])
        nearest = int(among[closeness >= closeness.max() * (1 - TIE)].min())
        return Prediction(j, value, predictors, partners, nearest)


class _Forward:
    """Forward regression of one column on earlier ones, a predictor at a time, from the Gram alone.

    Works on all earlier columns, which is faster than picking out the kept ones; those that went
    are treated like columns of which nothing is left.
    """

    def __init__(self, gram: Matrix, target: int, kept: NDArray[np.bool_]) -> None:
        self._gram = gram
        self._shared = np.where(kept, gram[target, :target], 0.0)
        self._left = kept.astype(np.float64)
        self._factors: list[Matrix] = []
        self.members: list[int] = []
        self.r_squared = 0.0

    def add(self) -> bool:
        """Take the predictor that explains most of what is left; False when none explains any."""
        gain = self._shared * self._shared
        gain /= np.maximum(self._left, _SEPARATE)
        top = float(gain.max())
        if top <= RESIDUAL_VARIANCE:
            return False
        best = int(np.argmax(gain >= top * (1 - TIE)))
        column = self._gram[best, : len(self._left)].copy()
        for factor in self._factors:
            column -= factor[best] * factor
        scale = math.sqrt(float(self._left[best]))
        column /= scale
        step = float(self._shared[best]) / scale
        self._factors.append(column)
        self._shared -= step * column
        self._left -= column * column
        self._shared[self._left <= _SEPARATE] = 0.0
        self.r_squared = min(self.r_squared + step * step, 1.0)
        self.members.append(best)
        return True


def reached(value: float, threshold: float) -> bool:
    """Whether an R^2 reaches a threshold, as whole millionths, so that no rounding of sums decides.

    Examples
    --------
    >>> reached(0.8999996, 0.9), reached(-math.inf, 0.0)
    (True, False)
    """
    return round(value, 6) >= round(threshold, 6) if math.isfinite(value) else value > 0


def _renumbered(one: Prediction, names: Indices) -> Prediction:
    """`one` with every position replaced by what stands there in `names`."""
    return Prediction(
        index=int(names[one.index]),
        r_squared=one.r_squared,
        predictors=one.predictors,
        partners=tuple((int(names[column]), weight) for column, weight in one.partners),
        representative=int(names[one.representative]),
    )
