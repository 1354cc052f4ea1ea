"""What the selections that work on a Gram matrix of unit-norm columns share.

Covers: which columns are independent of better ones, by a Cholesky factorisation in their order;
what counts as nothing left, and as a tie; the columns that are asked for ahead of the others.
Host arrays only.
Does not cover: the matrix itself (`dpipe.engine.gram`), what is decided by it
(`dpipe.kernels.prediction`, `dpipe.kernels.vif`, `dpipe.kernels.budget`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

RESIDUAL_VARIANCE = 1e-10
"""A column of unit variance with less than this left beside others is their combination."""

TIE = 1e-6
"""Relative difference below which two values count as equal, so that the order decides."""

PANEL = 128
"""Columns that are held back before one matrix product applies them, which is far faster."""

_NEGLIGIBLE = 1e-6  # coefficients this small beside the largest are rounding

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]


class Factor:
    """The Cholesky factor of the columns that are taken, which are looked at in their order.

    Left-looking, in panels: when a column's turn comes, its residual variance beside those taken so
    far stands on the diagonal.

    Parameters
    ----------
    gram
        (p, p) Gram matrix of unit-norm columns.

    Attributes
    ----------
    basis
        The independent columns among those taken.
    values
        (p, at least m) a row for each column, a column for each of the m in the basis.

    Examples
    --------
    >>> factor = Factor(np.array([[1.0, 0.6], [0.6, 1.0]]))
    >>> factor.left(0), factor.take(0), round(factor.left(1), 2)
    (1.0, None, 0.64)
    """

    def __init__(self, gram: Matrix) -> None:
        self.basis: list[int] = []
        self.values = np.zeros((len(gram), min(len(gram), PANEL)), order="F")
        self._gram = gram
        self._start = self._applied = 0
        self._panel = self._rest = np.empty((0, 0))

    def left(self, j: int) -> float:
        """What those taken leave of the variance of column `j`, which comes after all seen."""
        if j % PANEL == 0:
            self._begin_panel(j)
        held = slice(self._applied, len(self.basis))
        column = j - self._start
        self._rest = self._panel[column:, column] - self.values[j:, held] @ self.values[j, held]
        return min(max(float(self._rest[0]), 0.0), 1.0)

    def take(self, j: int) -> None:
        """Take column `j`, the last one looked at; one that is a combination adds nothing."""
        left = min(float(self._rest[0]), 1.0)
        if left >= RESIDUAL_VARIANCE:
            self.values[j:, len(self.basis)] = self._rest / math.sqrt(left)
            self.basis.append(j)

    def _begin_panel(self, start: int) -> None:
        stop = min(start + PANEL, len(self._gram))
        m = len(self.basis)
        self.values = _with_room(self.values, m + stop - start)
        self._panel = self._gram[start:, start:stop] - (
            self.values[start:, :m] @ self.values[start:stop, :m].T
        )
        self._start, self._applied = start, m


def factored(gram: Matrix, count: int | None = None) -> Factor:
    """The factor of those of the first `count` columns, or of all, that are independent."""
    factor = Factor(gram)
    for j in range(len(gram) if count is None else count):
        factor.left(j)
        factor.take(j)
    return factor


def asked_first(order: Indices, asked: NDArray[np.bool_]) -> tuple[Indices, int]:
    """`order` with the columns that are asked for ahead, and how many those are.

    Examples
    --------
    >>> asked_first(np.array([2, 0, 1]), np.array([False, True, False]))
    (array([1, 2, 0]), 1)
    """
    first = asked[order]
    return np.concatenate((order[first], order[~first])), int(np.count_nonzero(first))


def check_gram(r: Matrix, order: Indices, *others: NDArray[np.generic]) -> None:
    """Refuse a matrix and arrays about its columns that do not fit together.

    Raises
    ------
    ValueError
        When they do not, or `r` has no unit diagonal.
    """
    p = len(r)
    fits = r.shape == (p, p) and all(each.shape == (p,) for each in others)
    if not fits or not np.array_equal(np.sort(order), np.arange(p)):
        raise ValueError("r and its arrays must speak of the same columns, each once.")
    if not np.allclose(np.diagonal(r), 1.0, rtol=0, atol=1e-6):  # NaN fails too
        raise ValueError("r must be the Gram matrix of columns of norm 1.")


def largest_first(columns: Indices, weights: Matrix) -> tuple[tuple[int, float], ...]:
    """(column, coefficient), the largest first, without those that are rounding alone."""
    size = np.abs(weights)
    used = np.flatnonzero(size > _NEGLIGIBLE * size.max())
    used = used[np.lexsort((columns[used], -np.round(size[used], 9)))]
    return tuple(zip(columns[used].tolist(), weights[used].tolist(), strict=True))


def _with_room(factor: Matrix, columns: int) -> Matrix:
    """`factor` with at least `columns` columns; it grows by halves, so as to be copied rarely."""
    if factor.shape[1] >= columns:
        return factor
    larger = np.zeros((len(factor), max(columns, factor.shape[1] * 3 // 2)), order="F")
    larger[:, : factor.shape[1]] = factor
    return larger
