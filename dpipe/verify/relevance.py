"""How much columns tell of the targets, computed by other means than the engine's.

Covers: the targets, ranked; HSIC and RDC of columns with numbers and with classes, on the rows
where both are known; the largest of several targets.
Does not cover: measures of pairs of columns (`dpipe.verify.dependence`), what the values must
satisfy (`dpipe.verify.checks`).

A column's own sizes and directions come from a QR factorisation of its different values, and what
it tells of classes from its means in each: no covariance is whitened.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import legendre
from threadpoolctl import threadpool_limits

from dpipe.kernels.draws import rdc_draws
from dpipe.options import Options
from dpipe.table import Table
from dpipe.table.target import read_target
from dpipe.verify.columns import RankedColumns, is_valid, rank_values
from dpipe.verify.crew import Crew
from dpipe.verify.dependence import kernel_root
from dpipe.verify.functions import FUNCTIONS, pivoted, psi, waves

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DRAWS = 5
"""Of RDC, whatever pass 4 takes: the order of columns does not follow from its options."""

_ROWS_AT_ONCE = 2**13  # whose functions stay in a core's cache
_ROUNDING = 1e-13  # of the largest feature of a constant, relative to its mean


@dataclass(frozen=True)
class Target:
    """A target, ranked.

    Attributes
    ----------
    name
        Its column.
    ranks
        That column alone; classes are ranked by their numbers, so equal ranks are one class.
    is_classes
        Whether the order of its values means nothing.
    """

    name: str
    ranks: RankedColumns
    is_classes: bool


def ranked_target(
    table: Table, name: str, kind: str, rows: NDArray[np.int64] | None, path: str
) -> Target:
    """Read and rank a target on the rows that take part, into a file."""
    column = read_target(table, name, kind, rows)
    return Target(name, rank_values({name: column.values}, path), column.classes is not None)


def relevances(
    table: Table,
    columns: RankedColumns,
    names: Sequence[str],
    rows: NDArray[np.int64] | None,
    options: Options,
    crew: Crew,
) -> dict[str, float]:
    """The relevance of columns; NaN where too few rows have both values, or the column one value.

    Parameters
    ----------
    table, rows
        Where the targets are read, and on which rows (None: all).
    columns, names
        The ranked input, and the columns to measure.
    options
        The targets, the fewest common rows, the seed of RDC.
    crew
        Who does it.
    """
    files = (f"{columns.path}-target-{number}" for number in range(len(options.target)))
    tasks = (
        (table, name, options.target_kind, rows, path)
        for name, path in zip(options.target, files, strict=True)
    )
    targets = list(crew.each(ranked_target, tasks))
    step = max(1, math.ceil(len(names) / (4 * crew.workers)))
    parts = [names[start : start + step] for start in range(0, len(names), step)]
    work = ((columns.part(part), part, targets, options) for part in parts)
    values = [value for found in crew.each(relevances_here, work) for value in found]
    return dict(zip(names, values, strict=True))


def relevances_here(
    columns: RankedColumns, names: Sequence[str], targets: Sequence[Target], options: Options
) -> list[float]:
    """The relevance of some columns: of several targets the largest counts."""
    largest = [math.nan] * len(names)
    with threadpool_limits(1):  # threads would only wait for each other: the products are small
        for target in targets:
            ranks = target.ranks.of(target.name)
            known = is_valid(ranks)
            on_all = _side_of(ranks[known], target.is_classes, options.seed)
            n_known = np.count_nonzero(known)
            for place, name in enumerate(names):
                own = columns.of(name)
                common = known & is_valid(own)
                n = np.count_nonzero(common)
                if n < max(1, options.required_rows):
                    continue
                side = on_all
                if n < n_known:
                    side = _side_of(ranks[common], target.is_classes, options.seed)
                value = _relevance(own[common], side, options.seed)
                largest[place] = float(np.fmax(largest[place], value))
    return largest


def _side_of(ranks: NDArray[np.int32], is_classes: bool, seed: int) -> _Side | None:
    """A target on some rows, ranked among these; None where it is one value."""
    places, counts = _told_apart(ranks)
    if len(counts) < 2:
        return None
    if is_classes:
        return _Classes(places, counts / len(ranks))
    return _Numbers.of(places, counts, seed)


def _relevance(ranks: NDArray[np.int32], target: _Side | None, seed: int) -> float:
    """The mean of nHSIC and RDC with a target on the same rows (n,); NaN for a column of one value.

    Of a target of one value nothing tells anything.
    """
    places, counts = _told_apart(ranks)
    if len(counts) < 2:
        return math.nan
    if target is None:
        return 0.0
    measures = target.measures(_Numbers.of(places, counts, seed))
    return sum(min(1.0, value) for value in measures) / 2


def _told_apart(ranks: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Which of the different ranks, in rising order, each row has, and how many rows have each."""
    from_zero = ranks.astype(np.int64) - int(ranks.min())
    counts = np.bincount(from_zero)
    is_there = counts > 0
    place = np.cumsum(is_there, dtype=np.int32)
    place -= 1
    return place[from_zero], counts[is_there]


@dataclass(frozen=True)
class _Numbers:
    """What the measures need of ranks.

    Attributes
    ----------
    argument
        2 u - 1 of each row (n,), ranked among these.
    kernel
        (K, 12) makes of the basis functions those whose squared covariances add up to HSIC, over
        the root of HSIC with itself.
    spans
        (5, d, 12) for each draw orthonormal functions that span the features of RDC.
    """

    argument: Floats
    kernel: Floats
    spans: Floats

    @classmethod
    def of(cls, places: NDArray[np.int32], counts: NDArray[np.int64], seed: int) -> _Numbers:
        """From which of the different values each row has, and how many rows have each."""
        n = len(places)
        values = (2 * np.cumsum(counts) - counts - n) / n
        tied = len(counts) < n
        own = _functions(_triangle(values, counts), seed) if tied else _untied(n, seed)
        return cls(values[places], *own)

    def measures(self, column: _Numbers) -> tuple[float, float]:
        """HSIC and RDC of a column with these numbers."""
        covariance = _covariance(column.argument, self.argument)
        hsic = float(((column.kernel @ covariance @ self.kernel.T) ** 2).sum())
        return hsic, _median_of_largest(column.spans @ covariance @ self.spans.transpose(0, 2, 1))


@dataclass(frozen=True)
class _Classes:
    """What the measures need of classes.

    Attributes
    ----------
    numbers
        The class of each row, (n,).
    shares
        The share of each class among the rows.
    """

    numbers: NDArray[np.int32]
    shares: Floats

    def measures(self, column: _Numbers) -> tuple[float, float]:
        """HSIC and RDC of a column with these classes, from the means of its functions in each."""
        means = _means_of_classes(column.argument, self.numbers, self.shares)
        squares = float((self.shares**2).sum())
        own = squares - 2 * float((self.shares**3).sum()) + squares**2
        hsic = float(((column.kernel @ (means * self.shares)) ** 2).sum()) / math.sqrt(own)
        return hsic, _median_of_largest(column.spans @ (means * np.sqrt(self.shares)))


_Side = _Numbers | _Classes


def _median_of_largest(correlations: Floats) -> float:
    """Over the draws, of the largest canonical correlation."""
    return float(np.median(np.linalg.svd(correlations, compute_uv=False)[:, 0]))


def _pieces(n_rows: int) -> list[slice]:
    return [slice(start, start + _ROWS_AT_ONCE) for start in range(0, n_rows, _ROWS_AT_ONCE)]


def _covariance(left: Floats, right: Floats) -> Floats:
    """(12, 12) of the basis functions at two arguments (n,)."""
    n = len(left)
    product, sums = np.zeros((FUNCTIONS, FUNCTIONS)), np.zeros((2, FUNCTIONS))
    for rows in _pieces(n):
        f, g = psi(left[rows]), psi(right[rows])
        product += f @ g.T
        sums += f.sum(axis=1), g.sum(axis=1)
    means = sums / n
    return np.asarray(product / n - np.outer(*means))


def _means_of_classes(argument: Floats, numbers: NDArray[np.int32], shares: Floats) -> Floats:
    """(12, C) means of the basis functions in each class, less those in all rows."""
    sums = np.zeros((FUNCTIONS, len(shares)))
    for rows in _pieces(len(argument)):
        for total, values in zip(sums, psi(argument[rows]), strict=True):
            total += np.bincount(numbers[rows], values, len(shares))
    sums /= len(argument)
    mean = sums.sum(axis=1, keepdims=True)
    sums /= shares
    sums -= mean
    return sums


@lru_cache(maxsize=8)
def _untied(n: int, seed: int) -> tuple[Floats, Floats]:
    """`_functions` of any column of n different values."""
    values = (2 * np.arange(n) + 1 - n) / n
    return _functions(_triangle(values, np.ones(n, np.int64)), seed)


def _functions(triangle: Floats, seed: int) -> tuple[Floats, Floats]:
    """`kernel` and `spans` of `_Numbers`, from the lengths and angles of the basis functions."""
    root = kernel_root(1e-9).T
    norm = np.linalg.norm(root @ (triangle.T @ triangle) @ root.T)
    features = _features(seed)
    rounding = _ROUNDING * np.abs(features).max(axis=(1, 2))
    return root / math.sqrt(norm), pivoted(features @ triangle.T, features, rounding)


def _triangle(values: Floats, counts: NDArray[np.int64]) -> Floats:
    """(12, 12) with the lengths and angles of the centred basis functions, each row counting 1 / n.

    The column of ones that comes first in the factorisation takes their means.
    """
    n = int(counts.sum())
    triangle = np.zeros((0, FUNCTIONS + 1))
    for some in _pieces(len(values)):
        functions = np.vstack([np.ones(len(values[some])), psi(values[some])])
        functions *= np.sqrt(counts[some] / n)
        triangle = np.asarray(np.linalg.qr(np.concatenate([triangle, functions.T]), mode="r"))
    return triangle[1:, 1:]


@lru_cache(maxsize=2)
def _features(seed: int) -> Floats:
    """(5, 20, 12) coefficients of the random features in the basis, for each draw."""
    nodes, weights = legendre.leggauss(80)
    weighted = psi(nodes) * (weights / 2)
    return np.stack([waves(w, b, nodes) @ weighted.T for w, b in rdc_draws(seed, DRAWS)])
