"""The measures once more, in plain NumPy: what a decision claims is computed by other means.

Covers: pairwise-complete Spearman, copula HSIC, RDC after the published recipe, their fusion.
Does not cover: predictions by several columns (`dpipe.verify.prediction`), what the values must
satisfy (`dpipe.verify.checks`).

Of dpipe's own computation only the seeded draws of RDC are used: they are a convention. Every
value that decides is computed for its pair alone, in float64; products of many columns at once
only tell which pairs need not be looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.polynomial import legendre

from dpipe.kernels.draws import rdc_draws
from dpipe.options import Options
from dpipe.verify.columns import RankedColumns, in_order, is_valid
from dpipe.verify.pairs import all_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Found = Iterator[tuple[str, str, float]]

FUNCTIONS = 12
BANDWIDTH = 1 - 1 / math.sqrt(2)
RDC_SCALE = 1 / 6
RDC_TOLERANCE = 1e-7

_COARSE = 1e-4  # relative weight of kernel directions left out of the look at all pairs
_COARSE_MISS = 1e-3  # and what HSIC may then lack
_SMALLEST_VARIANCE = 1e-9  # of a column's largest; smaller directions are left out
_CONSTANT = 1e-12  # own HSIC of a column that does not vary, but for rounding
_SMALL_CELLS = 10**8
_CACHE_BYTES = 2**30
_ROWS_AT_ONCE = 4096


# Spearman


def spearman(left: NDArray[np.int32], right: NDArray[np.int32], min_valid: int) -> float:
    """Rho of one pair, both columns ranked again on the rows where both are valid.

    NaN with fewer than `min_valid` common rows, or where a column is constant on them.
    """
    joint = is_valid(left) & is_valid(right)
    if np.count_nonzero(joint) < min_valid:
        return math.nan
    first, second = (_ranked_again(column[joint]) for column in (left, right))
    scale = math.sqrt(float(first @ first)) * math.sqrt(float(second @ second))
    return float(first @ second) / scale if scale > 0 else math.nan


def _ranked_again(ranks: NDArray[np.int32]) -> Floats:
    """Centred average ranks of some of a column's rows; counting is enough, as ranks are whole."""
    from_zero = ranks.astype(np.int64) - int(ranks.min(initial=0))
    counts = np.bincount(from_zero)
    twice = 2 * np.cumsum(counts) - counts - len(ranks)
    again: Floats = twice[from_zero] / max(1, len(ranks))
    return again


def similar_pairs(
    columns: RankedColumns, names: Sequence[str], threshold: float, min_valid: int
) -> Found:
    """Every pair of `names` whose |rho| reaches `threshold`, with its rho.

    All pairs are first measured by the columns' marginal ranks, which is exact for complete columns
    and off by a bounded angle for others; those that may reach the threshold are then ranked alone.
    In a small table all pairs with missing cells are.
    """
    names = in_order(names, columns)
    incomplete = sum(not columns.is_complete(name) for name in names)
    is_small = incomplete * len(names) * columns.n_rows <= _SMALL_CELLS

    def read(part: Sequence[str], rows: slice) -> tuple[Floats, NDArray[np.bool_]]:
        ranks = np.stack([columns.of(name)[rows] for name in part])
        return _scores(ranks, [columns.facts[name].n_valid for name in part])[:, None], is_valid(
            ranks
        )

    for left, right, sums in all_pairs(names, columns.n_rows, 1, read):
        whole = all(columns.is_complete(name) for name in (*left, *right))
        low: float | Floats = threshold - 1e-9 if whole else -math.inf
        if not whole and not is_small:
            low = _least_by_marginal_ranks(
                threshold, sums.count, *(_n_valid(columns, s) for s in (left, right))
            )
        may_reach = (np.abs(sums.correlation()) >= low) & (sums.count >= min_valid)
        for i, j in np.argwhere(np.triu(may_reach, 1) if left is right else may_reach):
            rho = spearman(columns.of(left[i]), columns.of(right[j]), min_valid)
            if abs(rho) >= threshold:
                yield left[i], right[j], rho


def _n_valid(columns: RankedColumns, names: Sequence[str]) -> Floats:
    return np.array([columns.facts[name].n_valid for name in names], dtype=np.float64)


def _least_by_marginal_ranks(
    threshold: float, count: Floats, n_left: Floats, n_right: Floats
) -> Floats:
    """Marginal ranks turn by at most the arcsine of the share of its rows that a column loses."""
    lost = 1 - count / np.maximum(n_left, 1)[:, None], 1 - count / np.maximum(n_right, 1)
    turned = math.acos(threshold) + sum(np.arcsin(np.clip(share, 0, 1)) for share in lost)
    return np.asarray(np.cos(np.minimum(turned, math.pi / 2)) - 1e-9)


def _scores(ranks: NDArray[np.int32], n_valid: Sequence[int]) -> Floats:
    """Centred ranks (b, n) on the scale of u, 0 (the mean rank) where missing."""
    scores = np.where(is_valid(ranks), ranks, 0) / (2 * np.maximum(n_valid, 1))[:, None]
    return np.asarray(scores, dtype=np.float64)


# The measures of pass 4


@dataclass(frozen=True)
class Column:
    """What a measure needs of one column.

    Attributes
    ----------
    functions
        Arrays (d, n) of functions of its rows, whose covariances with another column's it needs.
    sizes
        Numbers of the column alone.
    """

    functions: list[Floats]
    sizes: tuple[float, ...] = ()


@dataclass(frozen=True)
class Formula:
    """How a measure is computed again.

    Attributes
    ----------
    column
        (2 u - 1 of the valid rows (n,), options) -> what it needs of the column.
    pair
        (left, right) -> its value, the functions being those of the joint rows; NaN where it is
        undefined.
    width
        Functions of a column altogether, at most.
    """

    column: Callable[[Floats, Options], Column]
    pair: Callable[[Column, Column], float]
    width: Callable[[Options], int]


class Nonlinear:
    """The fused similarity of pass 4 for pairs of columns.

    Parameters
    ----------
    columns
        The ranked input.
    rows
        Sorted positions of the rows pass 4 looked at; None for all.
    options
        Weights, fewest common rows, and what the measures read.
    """

    def __init__(
        self, columns: RankedColumns, rows: NDArray[np.int64] | None, options: Options
    ) -> None:
        self.columns = columns
        self.rows = rows
        self.options = options
        self.n_rows = columns.n_rows if rows is None else len(rows)
        self._weights = {name: weight for name, weight in options.shares.items() if weight > 0}
        width = sum(FORMULAS[name].width(options) for name in self._weights)
        held = max(4, _CACHE_BYTES // (8 * self.n_rows * width))
        self._features = lru_cache(maxsize=held)(self._work_out)

    def similarity(self, first: str, second: str) -> float:
        """The fused similarity of two columns; NaN where a measure is undefined."""
        (valid, left), (other, right) = self._features(first), self._features(second)
        joint = valid & other
        if np.count_nonzero(joint) < self.options.required_rows:
            return math.nan
        values = {
            name: FORMULAS[name].pair(_on(joint, left[name]), _on(joint, right[name]))
            for name in self._weights
        }
        return float(self._fused(values))

    def similar_pairs(self, names: Sequence[str], threshold: float) -> Found:
        """Every pair of `names` whose similarity reaches `threshold`, with it.

        No measure exceeds 1, so HSIC alone tells which pairs may reach the threshold.
        """
        names = in_order(names, self.columns)
        own = {name: self._own_hsic(name) for name in names}
        root = _kernel_root(_COARSE)

        def read(part: Sequence[str], rows: slice) -> tuple[Any, NDArray[np.bool_]]:
            ranks = np.stack([self._ranks(name)[rows] for name in part])
            valid = is_valid(ranks)
            argument = 2 * _scores(ranks, [self.columns.facts[name].n_valid for name in part])
            functions = np.matmul(root.T, _psi(argument).transpose(1, 0, 2))
            return (functions * valid[:, None]).astype(np.float32), valid

        for left, right, sums in all_pairs(names, self.n_rows, root.shape[1], read):
            norms = np.sqrt(np.outer([own[a] for a in left], [own[b] for b in right]))
            squares = (sums.covariance() ** 2).sum(axis=(2, 3))
            varies = norms > _CONSTANT
            hsic = np.minimum(squares / np.where(varies, norms, 1) + _COARSE_MISS, 1)
            at_most: dict[str, Any] = {**dict.fromkeys(self._weights, 1.0), "hsic": hsic}
            may_reach = varies & (self._fused(at_most) >= threshold)
            for i, j in np.argwhere(np.triu(may_reach, 1) if left is right else may_reach):
                value = self.similarity(left[i], right[j])
                if value >= threshold:
                    yield left[i], right[j], value

    def _ranks(self, name: str) -> NDArray[np.int32]:
        """Ranks of a column among all its rows, on the rows of pass 4."""
        ranks = self.columns.of(name)
        return ranks if self.rows is None else ranks[self.rows]

    def _fused(self, values: Mapping[str, Any]) -> Any:
        weighted = [weight * values[name] for name, weight in self._weights.items()]
        return sum(weighted) / sum(self._weights.values())

    def _argument(self, name: str) -> tuple[NDArray[np.bool_], Floats]:
        """Which rows are valid, and 2 u - 1 on them."""
        ranks = self._ranks(name)
        valid = is_valid(ranks)
        return valid, ranks[valid] / max(1, self.columns.facts[name].n_valid)

    def _own_hsic(self, name: str) -> float:
        _, argument = self._argument(name)
        return _hsic_column(argument, self.options).sizes[0]

    def _work_out(self, name: str) -> tuple[NDArray[np.bool_], dict[str, Column]]:
        """Which rows are valid, and what each measure needs of the column, on all rows."""
        valid, argument = self._argument(name)

        def spread(functions: Floats) -> Floats:
            everywhere = np.zeros((len(functions), len(valid)))
            everywhere[:, valid] = functions
            return everywhere

        columns = {}
        for measure in self._weights:
            column = FORMULAS[measure].column(argument, self.options)
            columns[measure] = Column([spread(f) for f in column.functions], column.sizes)
        return valid, columns


def _psi(argument: Floats) -> Floats:
    """Orthonormal Legendre functions 1 to 12 at 2 u - 1: (12, ...)."""
    values = np.moveaxis(legendre.legvander(argument, FUNCTIONS), -1, 0)
    degrees = np.arange(FUNCTIONS + 1).reshape(-1, *[1] * argument.ndim)
    return np.asarray((values * np.sqrt(2 * degrees + 1))[1:])


@lru_cache
def _kernel_root(smallest: float) -> Floats:
    """A (12, K) with A A' the Gaussian kernel's coefficients.

    Directions of less than `smallest` times the largest weight are left out.
    """
    nodes, weights = legendre.leggauss(80)
    u, weights = (nodes + 1) / 2, weights / 2
    kernel = np.exp(-0.5 * ((u[:, None] - u) / BANDWIDTH) ** 2)
    weighted = _psi(nodes) * weights
    values, vectors = np.linalg.eigh(weighted @ kernel @ weighted.T)
    large = values > smallest * values[-1]
    return np.asarray(vectors[:, large] * np.sqrt(values[large]))


def _kernel_functions(argument: Floats) -> Floats:
    """Functions (K, n) whose squared covariances add up to HSIC."""
    return np.asarray(_kernel_root(1e-9).T @ _psi(argument))


def _covariance(left: Floats, right: Floats) -> Floats:
    """Of functions (K, n) and (L, n): (K, L)."""
    n = max(1, left.shape[1])
    means = np.outer(left.sum(axis=1) / n, right.sum(axis=1) / n)
    return np.asarray(left @ right.T / n - means)


def _on(rows: NDArray[np.bool_], column: Column) -> Column:
    """A column on some rows; not copied when these are all."""
    if rows.all():
        return column
    return Column([functions[:, rows] for functions in column.functions], column.sizes)


def _hsic_column(argument: Floats, options: Options) -> Column:
    kernel = _kernel_functions(argument)
    return Column([kernel], (float((_covariance(kernel, kernel) ** 2).sum()),))


def _hsic(left: Column, right: Column) -> float:
    scale = math.sqrt(left.sizes[0] * right.sizes[0])
    if scale <= _CONSTANT:
        return math.nan
    between = _covariance(left.functions[0], right.functions[0])
    return min(1.0, float((between**2).sum()) / scale)


def _dcor_column(argument: Floats, options: Options) -> Column:
    """Functions whose squared covariances add up to the distance covariance, and its own sizes.

    The distances of a column act on its polynomials of degree 12 alone, under its distribution.
    """
    psi = _psi(argument)
    centred = psi - psi.mean(axis=1, keepdims=True) if psi.size else psi
    variances, directions = np.linalg.eigh(centred @ centred.T / max(1, centred.shape[1]))
    varies = variances > _SMALLEST_VARIANCE * variances[-1]
    if variances[-1] <= _CONSTANT:
        return Column([psi[:0]], (0.0, 0.0, 0.0))
    functions = (directions[:, varies] / np.sqrt(variances[varies])).T @ centred
    places, which, counts = np.unique(argument, return_inverse=True, return_counts=True)
    steps = np.diff(places) / 2
    below = np.cumsum(counts)[:-1] / len(argument)
    summed = np.stack([np.bincount(which, f, len(places)) for f in functions]) / len(argument)
    running = np.cumsum(summed, axis=1)[:, :-1]
    distances = 2 * (running * steps) @ running.T
    weights, axes = np.linalg.eigh(distances)
    root = axes * np.sqrt(np.clip(weights, 0, None))
    mean = float(2 * (steps * below * (1 - below)).sum())
    sizes = (mean, float(np.trace(distances)), float(np.linalg.norm(distances)))
    return Column([root.T @ functions], sizes)


def _dcor(left: Column, right: Column) -> float:
    """Distance correlation; what the polynomials miss is taken for chance."""
    size = left.sizes[2] * right.sizes[2]
    if size <= 0:
        return math.nan
    first, second = left.functions[0], right.functions[0]
    beyond = left.sizes[0] * right.sizes[0] - left.sizes[1] * right.sizes[1]
    squares = float((_covariance(first, second) ** 2).sum()) + beyond / max(1, first.shape[1])
    return math.sqrt(min(1.0, max(0.0, squares / size)))


def _rdc_column(argument: Floats, options: Options) -> Column:
    """Functions that span those RDC looks at, for each draw; `argument` is 2 u - 1."""
    if options.rdc_degree is not None:
        return Column([_orthonormal(_psi(argument)[: options.rdc_degree])])
    u = (argument + 1) / 2
    draws = rdc_draws(options.seed, options.rdc_seeds)
    spans = (np.sin(RDC_SCALE / 2 * (np.outer(w, u) + b[:, None])) for w, b in draws)
    return Column([_orthonormal(span) for span in spans])


def _rdc(left: Column, right: Column) -> float:
    """Largest canonical correlation, the median over the draws."""
    values = []
    for first, second in zip(left.functions, right.functions, strict=True):
        if 0 in (len(first), len(second)):
            return math.nan
        values.append(min(1.0, float(np.linalg.norm(_covariance(first, second), 2))))
    return float(np.median(values))


def _orthonormal(features: Floats) -> Floats:
    """Centred functions (d, n) of unit variance with the span of `features` (m, n).

    Orthogonalisation with pivoting, stopped at the relative tolerance of R's ``cancor``; none for
    a constant.
    """
    m, n = features.shape
    if n == 0:
        return features[:0]
    residual = features - features.mean(axis=1, keepdims=True)
    # A constant's features differ from their mean by rounding alone.
    smallest = 1e-13 * math.sqrt(n) * float(np.abs(features).max())
    directions: list[Floats] = []
    while len(directions) < m:
        norms = np.sqrt(np.einsum("mn,mn->m", residual, residual))
        pivot = int(np.argmax(norms))
        if norms[pivot] <= smallest:
            break
        if not directions:
            smallest = max(smallest, RDC_TOLERANCE * float(norms[pivot]))
        direction = residual[pivot] / norms[pivot]
        for earlier in directions:
            direction = direction - (direction @ earlier) * earlier
        direction /= np.linalg.norm(direction)
        residual -= np.outer(residual @ direction, direction)
        directions.append(direction)
    return np.stack(directions) * math.sqrt(n) if directions else features[:0]


FORMULAS: dict[str, Formula] = {
    "hsic": Formula(_hsic_column, _hsic, width=lambda options: FUNCTIONS),
    "dcor": Formula(_dcor_column, _dcor, width=lambda options: FUNCTIONS),
    "rdc": Formula(
        _rdc_column,
        _rdc,
        width=lambda options: 4 * (1 if options.rdc_degree else options.rdc_seeds),
    ),
}
"""The measures of pass 4 that can be computed again, by name."""
