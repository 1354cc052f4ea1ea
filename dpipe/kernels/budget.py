"""Exactly K columns: those that serve a target best together, or stand best for the rest.

Covers: greedy choice of columns from one Gram matrix, with and without a target, and what share of
the table and of the target the columns chosen so far explain. Host arrays only.
Does not cover: the Gram matrix and the order of columns (see `dpipe.passes`).
See also: docs/statistics.md for formulas and sources; docs/models.md for what was compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpipe.kernels.gram import RESIDUAL_VARIANCE, TIE, Indices, Matrix, asked_first

LEAST_RIDGE = 0.1
ROWS_OF_RIDGE = 100
"""The penalty of the regression on the target is worth this many rows, and at least a tenth of a
column's variance: docs/models.md has what others cost."""


@dataclass(frozen=True)
class Chosen:
    """The columns chosen, and what they explain.

    Attributes
    ----------
    indices
        (k,) in the order they were taken.
    table
        (k,) share of all columns' variance that the columns up to each explain, by least squares.
    target
        (k,) share of the targets' variance that a ridge regression on them explains; empty
        without a target.
    """

    indices: Indices
    table: Matrix
    target: Matrix


def ridge_for(rows: int) -> float:
    """The penalty for a table of so many rows.

    Examples
    --------
    >>> ridge_for(50), ridge_for(10**6)
    (2.0, 0.1)
    """
    return max(ROWS_OF_RIDGE / max(rows, 1), LEAST_RIDGE)


@dataclass(frozen=True)
class Regression:
    """What the regression of some targets is made of, on the rows where they are known.

    Attributes
    ----------
    r
        (p, p) Gram matrix of unit-norm centred columns there; of one that is constant there, 0 but
        on the diagonal.
    responses
        (p, q) products of the columns with unit-norm centred functions of the targets: one for a
        target of numbers; for C classes their indicators, each times sqrt((1 - share) / (C - 1)),
        so that their variances add up to 1.
    ridge
        Penalty in units of a column's variance, see `ridge_for`; it keeps columns that differ only
        by noise from being taken for that noise.
    """

    r: Matrix
    responses: Matrix
    ridge: float


def choose_for_target(
    regressions: Sequence[Regression],
    r: Matrix,
    order: Indices,
    asked: NDArray[np.bool_],
    count: int,
    variance: float,
) -> Chosen:
    """Forward regression of the targets: always the column that explains most of what is left.

    Parameters
    ----------
    regressions
        Of the targets that are known in the same rows one each, all with the same columns. What a
        column explains is summed over them.
    r
        (p, p) Gram matrix of the columns on all rows, for what is explained of the table.
    order
        All p columns, the most relevant first; of equal gains the first counts.
    asked
        (p,) columns that are taken before any other.
    count
        How many columns to take; all when there are fewer.
    variance
        Of all responses together, which the shares are of: the number of targets.

    Notes
    -----
    The gain of a column is the fall of the penalised sum of squares, |c_j|^2 / (v_j + ridge), with
    c_j its product with the residuals and v_j its own residual variance, both by a Cholesky
    factorisation of r + ridge I that grows by a column a step: 2 p k operations a step and
    regression. Memory: p x count for each.

    Examples
    --------
    >>> import numpy as np
    >>> r = np.array([[1, 0.95, 0.1], [0.95, 1, 0.1], [0.1, 0.1, 1.0]])
    >>> of = Regression(r, np.array([[0.8], [0.79], [0.5]]), 0.1)
    >>> choose_for_target([of], r, np.arange(3), np.zeros(3, bool), 2, 1).indices.tolist()
    [0, 2]
    """
    order, n_asked = asked_first(order, asked)
    count = min(count, len(r))
    parts = [_Forward(regression, order, count) for regression in regressions]
    waiting = np.ones(len(r), dtype=bool)
    steps, gained = [], []
    for step in range(count):
        gains = np.sum([part.gains() for part in parts], axis=0)
        best = _first_of_largest(gains, waiting) if step >= n_asked else step
        for part in parts:
            part.take(best)
        gained.append(float(gains[best]))
        waiting[best] = False
        steps.append(best)
    share = np.cumsum(gained) / variance
    table = explained_by(r[np.ix_(order, order)], np.array(steps, dtype=np.int64))
    return Chosen(order[steps], table, share)


class _Forward:
    """A ridge regression that takes a column a step; columns are counted in order."""

    def __init__(self, of: Regression, order: Indices, count: int) -> None:
        self._of, self._order = of, order
        self._shared = of.responses[order]
        self._left = np.full(len(order), 1 + of.ridge)
        self._factor = np.empty((len(order), count), order="F")
        self._rank = 0

    def gains(self) -> Matrix:
        """What each column would explain of what is left of the targets."""
        return np.asarray((self._shared**2).sum(axis=1) / self._left)

    def take(self, best: int) -> None:
        """Take a column."""
        held = self._factor[:, : self._rank]
        column = self._of.r[self._order, self._order[best]] - held @ held[best]
        column[best] += self._of.ridge
        column /= math.sqrt(self._left[best])
        self._factor[:, self._rank] = column
        self._rank += 1
        self._shared -= np.outer(column, self._shared[best] / math.sqrt(self._left[best]))
        self._left = np.maximum(self._left - column * column, self._of.ridge)


def choose_for_table(r: Matrix, order: Indices, asked: NDArray[np.bool_], count: int) -> Chosen:
    """Greedy column subset selection: always the column that explains most of what is left of all.

    Arguments are those of `choose_for_target`, as far as they go: `r` is what it chooses from. When
    the chosen columns explain everything, the rest is filled up in order.

    Notes
    -----
    With E the Gram matrix of the residuals, the gain of column j is |E_j|^2 / E_jj. Both are kept
    up to date without E itself (Farahat, Ghodsi and Kamel 2011): one product of `r` with a vector
    and 2 p k operations a step. Memory: p x count beside `r`.

    Examples
    --------
    >>> import numpy as np
    >>> r = np.array([[1, 0.9, 0.1], [0.9, 1, 0.5], [0.1, 0.5, 1.0]])
    >>> choose_for_table(r, np.arange(3), np.zeros(3, bool), 1).indices.tolist()
    [1]
    """
    order, n_asked = asked_first(order, asked)
    count = min(count, len(r))
    gram = r[np.ix_(order, order)]
    rest = _Residual(gram, count)
    waiting = np.ones(len(gram), dtype=bool)
    steps: list[int] = []
    for step in range(count):
        best = _first_of_largest(rest.gains(), waiting) if step >= n_asked else step
        rest.take(best)
        waiting[best] = False
        steps.append(best)
    return Chosen(order[steps], np.array(rest.explained), np.empty(0))


def explained_by(r: Matrix, chosen: Indices) -> Matrix:
    """Share of all columns' variance that the first 1, 2, ... of `chosen` explain, (k,).

    Examples
    --------
    >>> import numpy as np
    >>> explained_by(np.eye(4), np.array([2, 0])).tolist()
    [0.25, 0.5]
    """
    rest = _Residual(r, len(chosen))
    for column in chosen.tolist():
        rest.take(column)
    return np.array(rest.explained)


class _Residual:
    """What the columns taken so far leave of each column."""

    def __init__(self, gram: Matrix, count: int) -> None:
        self._gram = gram
        self._factor = np.empty((len(gram), count), order="F")
        self._rank = 0
        self._left = np.diagonal(gram).copy()
        self._squares = np.einsum("ij,ij->i", gram, gram)
        self.explained: list[float] = []

    def gains(self) -> Matrix:
        """What each column would explain of all that is left."""
        lives = self._left > RESIDUAL_VARIANCE
        return np.where(lives, self._squares / np.where(lives, self._left, 1), 0)

    def take(self, column: int) -> None:
        """Take a column; one that adds nothing changes nothing."""
        share = self.explained[-1] if self.explained else 0.0
        if self._left[column] > RESIDUAL_VARIANCE:
            share += self._downdate(column) / len(self._gram)
        self.explained.append(min(share, 1.0))

    def _downdate(self, column: int) -> float:
        held = self._factor[:, : self._rank]
        found = self._gram[:, column] - held @ held[column]
        found /= math.sqrt(self._left[column])
        spread = self._gram @ found - held @ (held.T @ found)
        norm = float(found @ found)
        self._squares = np.maximum(self._squares - 2 * found * spread + norm * found**2, 0)
        self._left = np.maximum(self._left - found * found, 0)
        self._left[column] = 0.0
        self._factor[:, self._rank] = found
        self._rank += 1
        return norm


def _first_of_largest(gains: Matrix, waiting: NDArray[np.bool_]) -> int:
    """The first of those whose gain is largest, ties included."""
    gains = np.where(waiting, gains, -1.0)
    return int(np.flatnonzero(waiting & (gains >= gains.max() * (1 - TIE)))[0])
