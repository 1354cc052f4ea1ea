"""The measures once more, in plain NumPy: what a decision claims is computed by other means.

Covers: pairwise-complete Spearman, copula HSIC, RDC after the published recipe, their fusion.
Does not cover: which pairs need not be looked at (`dpipe.verify.screen`), predictions by several
columns (`dpipe.verify.prediction`), what the values must satisfy (`dpipe.verify.checks`).

Of dpipe's own computation only the seeded draws of RDC are used: they are a convention. Every
value is computed for its pair alone, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.polynomial import legendre

from dpipe.kernels.draws import rdc_draws
from dpipe.options import Options
from dpipe.verify.columns import RankedColumns, is_valid
from dpipe.verify.functions import (
    CONSTANT,
    ROWS_AT_ONCE,
    SMALLEST_VARIANCE,
    none,
    orthonormal,
    pieces,
    polynomials,
    psi,
    turned_by,
    waves,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Pair = tuple[str, str]

DISTANCE_FUNCTIONS = 16
BANDWIDTH = 1 - 1 / math.sqrt(2)

_PAIR_FUNCTIONS = 10  # that HSIC and RDC look at, where nobody asks for more
_FITTED = 256  # columns whose functions a task remembers
_BYTES_HELD = 2**26  # of functions evaluated, which a task may need again
_USUAL_WIDTH = 32  # functions of a column, all measures together


# Spearman


def spearman(left: NDArray[np.int32], right: NDArray[np.int32], min_valid: int) -> float:
    """Rho of one pair, both columns ranked again on the rows where both are valid.

    NaN with fewer than `min_valid` common rows, or where a column is constant on them.
    """
    joint = is_valid(left)
    joint &= is_valid(right)
    n = int(np.count_nonzero(joint))
    if n < min_valid:
        return math.nan
    if n == len(joint):  # the ranks are what ranking again would give
        first, second = (column / max(1, n) for column in (left, right))
    else:
        first, second = (_ranked_again(column[joint]) for column in (left, right))
    scale = math.sqrt(float(first @ first)) * math.sqrt(float(second @ second))
    return float(first @ second) / scale if scale > 0 else math.nan


def _ranked_again(ranks: NDArray[np.int32]) -> Floats:
    """Centred average ranks of some of a column's rows; counting is enough, as ranks are whole."""
    from_zero = ranks.astype(np.int64) - int(ranks.min(initial=0))
    counts = np.bincount(from_zero)
    twice = np.cumsum(counts)
    twice *= 2
    twice -= counts
    del counts
    twice -= len(ranks)
    again: Floats = twice[from_zero] / max(1, len(ranks))
    return again


def rhos(columns: RankedColumns, pairs: Sequence[Pair], min_valid: int) -> list[float]:
    """Rho of pairs of columns."""
    ranks = lru_cache(maxsize=2)(columns.of)
    return [spearman(ranks(first), ranks(second), min_valid) for first, second in pairs]


# The measures of pass 4


@dataclass(frozen=True)
class Column:
    """What a measure needs of one column.

    Attributes
    ----------
    functions
        Functions whose covariances with another column's it needs: each takes 2 u - 1 of any rows
        (n,) and returns values (d, n). They are asked for a piece of the rows at a time.
    sizes
        Numbers of the column alone.
    """

    functions: list[Callable[[Floats], Floats]]
    sizes: tuple[float, ...] = ()


@dataclass(frozen=True)
class Joint:
    """What a measure gets of a pair of columns.

    Attributes
    ----------
    covariances
        Of the functions of both, on the joint rows: an array (d, e) for each.
    n_rows
        The joint rows.
    left, right
        Sizes of the columns.
    """

    covariances: list[Floats]
    n_rows: int
    left: tuple[float, ...]
    right: tuple[float, ...]


@dataclass(frozen=True)
class Formula:
    """How a measure is computed again.

    Attributes
    ----------
    column
        (2 u - 1 of the valid rows (n,), options) -> what it needs of the column.
    pair
        What the two columns have in common -> the value; NaN where it is undefined.
    """

    column: Callable[[Floats, Options], Column]
    pair: Callable[[Joint], float]


class Nonlinear:
    """The fused similarity of pass 4 for pairs of columns.

    Parameters
    ----------
    columns
        The ranked input, on the rows that pass 4 looked at.
    options
        Weights, fewest common rows, and what the measures read.
    """

    def __init__(self, columns: RankedColumns, options: Options) -> None:
        self.columns = columns
        self.options = options
        self._weights = {name: weight for name, weight in options.shares.items() if weight > 0}
        self._fitted = lru_cache(maxsize=_FITTED)(self._fit)
        held = _BYTES_HELD // (8 * _USUAL_WIDTH * max(1, min(columns.n_rows, ROWS_AT_ONCE)))
        self._values = lru_cache(maxsize=max(2, held))(self._evaluate)

    def similarity(self, first: str, second: str) -> float:
        """The fused similarity of two columns; NaN where a measure is undefined.

        Columns that miss different rows are ranked again on those that both have.
        """
        if not all(self.columns.is_complete(name) for name in (first, second)):
            ranks = self.columns.of(first), self.columns.of(second)
            known = is_valid(ranks[0]), is_valid(ranks[1])
            if not np.array_equal(*known):
                return self._on_common_rows([each[known[0] & known[1]] for each in ranks])
        fitted = self._fitted(first), self._fitted(second)
        sums = {name: _Covariances() for name in self._weights}
        n_joint = 0
        for start in range(0, self.columns.n_rows, ROWS_AT_ONCE):
            (valid, left), (other, right) = self._values(first, start), self._values(second, start)
            joint = valid & other
            n_joint += int(np.count_nonzero(joint))
            for name, covariances in sums.items():
                covariances.add(_on(joint, left[name]), _on(joint, right[name]))
        if n_joint < self.options.required_rows:
            return math.nan
        return self._value(sums, n_joint, fitted)

    def _on_common_rows(self, ranks: Sequence[NDArray[np.int32]]) -> float:
        """The same of two columns as if there were no other rows than these (n,)."""
        n_joint = len(ranks[0])
        if n_joint < self.options.required_rows:
            return math.nan
        arguments = [_ranked_again(each) for each in ranks]
        fitted = tuple(self._columns(each) for each in arguments)
        sums = {name: _Covariances() for name in self._weights}
        for rows in pieces(n_joint):
            for name, covariances in sums.items():
                both = zip(arguments, fitted, strict=True)
                covariances.add(*([f(x[rows]) for f in of[name].functions] for x, of in both))
        return self._value(sums, n_joint, fitted)

    def _value(
        self,
        sums: Mapping[str, _Covariances],
        n_joint: int,
        fitted: Sequence[Mapping[str, Column]],
    ) -> float:
        values = {
            name: FORMULAS[name].pair(
                Joint(sums[name].values(), n_joint, *(side[name].sizes for side in fitted))
            )
            for name in self._weights
        }
        return float(self.fused(values))

    def fused(self, values: Mapping[str, Any]) -> Any:
        """The weighted mean of the measures."""
        weighted = [weight * values[name] for name, weight in self._weights.items()]
        return sum(weighted) / sum(self._weights.values())

    def _evaluate(self, name: str, start: int) -> tuple[NDArray[np.bool_], dict[str, list[Floats]]]:
        """Which of some rows are valid, and the functions of each measure on these rows."""
        ranks = self.columns.several([name], slice(start, start + ROWS_AT_ONCE))[0]
        valid = is_valid(ranks)
        argument = np.where(valid, ranks, 0) / max(1, self.columns.facts[name].n_valid)
        fitted = self._fitted(name)
        return valid, {m: [f(argument) for f in fitted[m].functions] for m in self._weights}

    def _fit(self, name: str) -> dict[str, Column]:
        """What each measure needs of the column."""
        ranks = self.columns.of(name)
        argument = ranks[is_valid(ranks)] / max(1, self.columns.facts[name].n_valid)
        del ranks
        return self._columns(argument)

    def _columns(self, argument: Floats) -> dict[str, Column]:
        return {m: FORMULAS[m].column(argument, self.options) for m in self._weights}


def similarities(columns: RankedColumns, pairs: Sequence[Pair], options: Options) -> list[float]:
    """The fused similarity of pairs of columns."""
    measure = Nonlinear(columns, options)
    return [measure.similarity(first, second) for first, second in pairs]


def _on(rows: NDArray[np.bool_], values: list[Floats]) -> list[Floats]:
    """Functions on some rows; not copied when these are all."""
    return values if rows.all() else [value[:, rows] for value in values]


class _Covariances:
    """Covariances of functions of two columns, added up piece by piece."""

    def __init__(self) -> None:
        self._sums: list[tuple[Floats, Floats, Floats]] = []
        self._n = 0

    def add(self, left: Sequence[Floats], right: Sequence[Floats]) -> None:
        """Take the values (d, n) of the functions of either column on some joint rows in."""
        self._n += left[0].shape[1]
        more = [(f @ g.T, f.sum(axis=1), g.sum(axis=1)) for f, g in zip(left, right, strict=True)]
        if self._sums:
            pairs = zip(self._sums, more, strict=True)
            more = [(a + x, b + y, c + z) for (a, b, c), (x, y, z) in pairs]
        self._sums = more

    def values(self) -> list[Floats]:
        """A covariance matrix for each pair of functions."""
        n = max(1, self._n)
        return [product / n - np.outer(a / n, b / n) for product, a, b in self._sums]


@lru_cache
def kernel_root(smallest: float) -> Floats:
    """A (12, K) with A A' the Gaussian kernel's coefficients.

    Directions of less than `smallest` times the largest weight are left out.
    """
    nodes, weights = legendre.leggauss(80)
    u, weights = (nodes + 1) / 2, weights / 2
    kernel = np.exp(-0.5 * ((u[:, None] - u) / BANDWIDTH) ** 2)
    weighted = psi(nodes) * weights
    values, vectors = np.linalg.eigh(weighted @ kernel @ weighted.T)
    large = values > smallest * values[-1]
    root = vectors[:, large] * np.sqrt(values[large])
    return np.asarray(root[:, ::-1])  # the direction in which the kernel varies most comes first


def _kernel_functions(argument: Floats) -> Floats:
    """Functions (K, n) whose squared covariances add up to HSIC."""
    return np.asarray(kernel_root(1e-9).T @ psi(argument))


def _own_covariance(function: Callable[[Floats], Floats], argument: Floats) -> Floats:
    """Of a column's functions among themselves."""
    covariances = _Covariances()
    for rows in pieces(len(argument)):
        values = [function(argument[rows])]
        covariances.add(values, values)
    return covariances.values()[0]


def _hsic_column(argument: Floats, options: Options) -> Column:
    own = _own_covariance(_kernel_functions, argument)
    return Column([_kernel_functions], (float((own**2).sum()),))


def _hsic(pair: Joint) -> float:
    scale = math.sqrt(pair.left[0] * pair.right[0])
    if scale <= CONSTANT:
        return math.nan
    return min(1.0, float((pair.covariances[0] ** 2).sum()) / scale)


def _dcor_column(argument: Floats, options: Options) -> Column:
    """Functions whose squared covariances add up to the distance covariance, and its own sizes.

    The distances of a column act on its polynomials of degree 16 alone, under its distribution.
    """
    basis = partial(psi, functions=DISTANCE_FUNCTIONS)
    variances, directions = np.linalg.eigh(_own_covariance(basis, argument))
    varies = variances > SMALLEST_VARIANCE * variances[-1]
    if variances[-1] <= CONSTANT:
        return Column([none], (0.0, 0.0, 0.0))
    turn = (directions[:, varies] / np.sqrt(variances[varies])).T
    places, counts = np.unique(argument, return_counts=True)
    # In pieces of the different values, and of the steps between them.
    middle = np.zeros(len(turn))
    for rows in pieces(len(places)):
        middle += (turn @ basis(places[rows])) @ counts[rows] / len(argument)
    below, before = 0.0, np.zeros(len(turn))
    distances = np.zeros((len(turn), len(turn)))
    mean = 0.0
    for rows in pieces(len(places) - 1):
        steps = (places[rows.start + 1 : rows.stop + 1] - places[rows]) / 2
        shares = counts[rows] / len(argument)
        summed = (turn @ basis(places[rows]) - middle[:, None]) * shares
        running = before[:, None] + np.cumsum(summed, axis=1)
        share_below = below + np.cumsum(shares)
        distances += 2 * (running * steps) @ running.T
        mean += float(2 * (steps * share_below * (1 - share_below)).sum())
        if len(shares):
            before, below = running[:, -1], float(share_below[-1])
    weights, axes = np.linalg.eigh(distances)
    root = (axes * np.sqrt(np.clip(weights, 0, None))).T @ turn
    sizes = (mean, float(np.trace(distances)), float(np.linalg.norm(distances)))
    return Column([partial(turned_by, root, basis)], sizes)


def _dcor(pair: Joint) -> float:
    """Distance correlation; what the polynomials miss is taken for chance."""
    size = pair.left[2] * pair.right[2]
    if size <= 0:
        return math.nan
    beyond = pair.left[0] * pair.right[0] - pair.left[1] * pair.right[1]
    squares = float((pair.covariances[0] ** 2).sum()) + beyond / max(1, pair.n_rows)
    return math.sqrt(min(1.0, max(0.0, squares / size)))


def _rdc_column(argument: Floats, options: Options) -> Column:
    """Functions that span those RDC looks at, for each draw; `argument` is 2 u - 1."""
    if options.rdc_degree is not None:
        return Column([polynomials(options.rdc_degree, _functions(options), argument)])
    draws = rdc_draws(options.seed, options.rdc_seeds)
    return Column([orthonormal(partial(waves, w, b), argument) for w, b in draws])


def _functions(options: Options) -> int:
    """Functions of a column that a run looks at: as many as the widest of its measures needs."""
    asked = (options.rdc_degree or 0, DISTANCE_FUNCTIONS if "dcor" in options.shares else 0)
    return max(_PAIR_FUNCTIONS, *asked)


def _rdc(pair: Joint) -> float:
    """Largest canonical correlation, the median over the draws."""
    values = []
    for covariance in pair.covariances:
        if 0 in covariance.shape:
            return math.nan
        values.append(min(1.0, float(np.linalg.norm(covariance, 2))))
    return float(np.median(values))


FORMULAS: dict[str, Formula] = {
    "hsic": Formula(_hsic_column, _hsic),
    "dcor": Formula(_dcor_column, _dcor),
    "rdc": Formula(_rdc_column, _rdc),
}
"""The measures of pass 4 that can be computed again, by name."""
