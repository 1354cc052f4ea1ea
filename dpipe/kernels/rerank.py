"""Ranking again inside pairs with missing cells, and their exact Spearman correlation.

Covers: ranks of a column among some of its rows; pairwise-complete rho as pandas defines it, for
groups of columns that share their validity.
Does not cover: which pairs need it (`dpipe.engine.tiles.edges`).
Source: Kendall & Gibbons 1990, ch. 3 (average ranks of ties).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpipe.device.arrays import Array, namespace

MOST_COUNTED = 2**22
"""Valid rows of a column whose scores still tell its ranks apart by half a rank and more."""


_SPARSE = 2  # ranks of a column to each that is looked at, from which on sorting is faster
_ALONE = 8  # products of two columns in a matrix of them that take as long as one alone
_CELLS_AT_ONCE = 2**16  # their ranks and what leads to them stay in a core's cache


def centred_ranks(scores: NDArray[np.float32], n_valid: NDArray[np.int64]) -> NDArray[np.float64]:
    """Average ranks of columns among some rows, less their mean.

    They are those of all valid rows where none of these is left out, else counted where scores
    tell ranks apart and rows are many, else sorted.

    Parameters
    ----------
    scores
        (columns, rows) as `dpipe.kernels.ranks.rank_column` has them, of any valid rows.
    n_valid
        (columns,) valid rows that the scores came from.

    Examples
    --------
    >>> scores = np.array([[-0.25, 0.375, -0.25]], dtype=np.float32)
    >>> centred_ranks(scores, np.array([4])).tolist()
    [[-0.5, 1.0, -0.5]]
    """
    ranks = np.empty(scores.shape)
    step = max(1, _CELLS_AT_ONCE // max(1, scores.shape[1]))
    for start in range(0, len(scores), step):
        some = slice(start, start + step)
        _fill_ranks(ranks[some], scores[some], n_valid[some])
    return ranks


def _fill_ranks(
    ranks: NDArray[np.float64], scores: NDArray[np.float32], n_valid: NDArray[np.int64]
) -> None:
    rows = scores.shape[1]
    told = n_valid <= MOST_COUNTED
    whole = told & (n_valid == rows)
    counted = told & ~whole & (n_valid <= _SPARSE * rows)
    # A score is (2 r - 1 - m) / (2 m), rounded.
    ranks[whole] = np.rint(np.multiply(scores[whole], 2 * rows, dtype=np.float64)) / 2
    if counted.any():
        ranks[counted] = counted_ranks(places(scores[counted], n_valid[counted])) - (rows + 1) / 2
    rest = ~whole & ~counted
    if rest.any():
        ranks[rest] = average_ranks(scores[rest]) - (rows + 1) / 2


def places(scores: NDArray[np.float32], n_valid: NDArray[np.int64]) -> NDArray[np.int64]:
    """Whole numbers ordered as the columns are, from which ranks are counted instead of sorted.

    Parameters
    ----------
    scores
        (columns, rows) as `dpipe.kernels.ranks.rank_column` has them, of any valid rows.
    n_valid
        (columns,) valid rows that the scores came from, `MOST_COUNTED` at most.

    Returns
    -------
    (columns, rows) from 0 to below `n_valid`. Of r - 1/2, r the average rank, the whole part:
    another one for each value, because between two of them lies a whole number.

    Examples
    --------
    >>> places(np.array([[-0.25, 0.375, -0.25]], dtype=np.float32), np.array([4])).tolist()
    [[1, 3, 1]]
    """
    rows = n_valid[:, None].astype(np.float64)
    return (scores * rows + rows / 2).astype(np.int64)


def counted_ranks(places: NDArray[np.int64]) -> NDArray[np.float64]:
    """What `average_ranks` gives, of whole numbers from 0 to not far beyond the rows.

    Examples
    --------
    >>> counted_ranks(np.array([[1, 3, 1]]))
    array([[1.5, 3. , 1.5]])
    """
    ranks = np.empty(places.shape)
    for column, out in zip(places, ranks, strict=True):
        rows = np.bincount(column)
        np.take(np.cumsum(rows) - (rows - 1) / 2, column, out=out, mode="clip")
    return ranks


def average_ranks(values: Array) -> Array:
    """Average ranks along the last axis.

    Parameters
    ----------
    values
        (columns, rows) without NaN.

    Returns
    -------
    (columns, rows) float64 ranks from 1; equal values share the mean of their ranks.

    Examples
    --------
    >>> average_ranks(np.array([[3.0, 1.0, 3.0]]))
    array([[2.5, 1. , 2.5]])
    """
    xp = namespace(values)
    columns, rows = values.shape
    order = xp.argsort(values, axis=1)
    ordered = xp.take_along_axis(values, order, axis=1)
    starts = xp.ones((columns, rows), dtype=bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    group = xp.cumsum(starts.ravel()).reshape(columns, rows) - 1
    first = xp.flatnonzero(starts.ravel())
    last = xp.append(first[1:], columns * rows)
    mean = (first + last - 1) / 2  # position of the group's middle in the flattened table
    ranks = xp.empty((columns, rows))
    row = xp.arange(columns)[:, None]
    ranks[row, order] = mean[group] - row * rows + 1  # CuPy 13 has no put_along_axis
    return ranks


def joint_scores(scores: NDArray[np.float32], n_valid: NDArray[np.int64]) -> NDArray[np.float64]:
    """Centred ranks of columns among the rows that are given, from their scores on these rows.

    Parameters
    ----------
    scores
        (b, r) as `dpipe.kernels.ranks.rank_column` has them, of any valid rows.
    n_valid
        (b,) valid rows that the scores came from.

    Examples
    --------
    >>> joint_scores(np.array([[-0.4, 0.0, 0.4]], dtype=np.float32), np.array([5])).round(3)
    array([[-0.333,  0.   ,  0.333]])
    """
    return np.asarray(centred_ranks(scores, n_valid) / max(scores.shape[1], 1))


def joint_spearman(left: Array, right: Array) -> Array:
    """Spearman's rho of every column of one table with every column of another.

    Parameters
    ----------
    left, right
        (a, rows) and (b, rows): any values ordered as the columns are, on the rows where all of
        these columns are valid.

    Returns
    -------
    (a, b) float64; NaN where a column is constant on these rows.

    Examples
    --------
    >>> joint_spearman(np.array([[1.0, 2, 3, 4]]), np.array([[1.0, 3, 2, 4]])).round(6)
    array([[0.8]])
    """
    xp = namespace(left)
    ranks = [average_ranks(side) - (side.shape[1] + 1) / 2 for side in (left, right)]
    squares = [(side**2).sum(axis=1) for side in ranks]
    # Sums of products of half ranks are exact below 2^51, whatever is multiplied beside them.
    products = xp.matmul(ranks[0], ranks[1].T)
    return _rho(products, squares[0][:, None] * squares[1][None, :])


def spearman_of_pairs(
    left: NDArray[np.float64],
    right: NDArray[np.float64],
    i: NDArray[np.int64],
    j: NDArray[np.int64],
) -> NDArray[np.float64]:
    """The same of some pairs of columns, from their ranks.

    Parameters
    ----------
    left, right
        (a, rows) and (b, rows) as `centred_ranks` gives them.
    i, j
        (pairs,) a column of the left for each, and one of the right.

    Examples
    --------
    >>> ranks = np.array([[-1.5, -0.5, 0.5, 1.5], [-1.5, 0.5, -0.5, 1.5]])
    >>> spearman_of_pairs(ranks, ranks, np.array([0, 0]), np.array([0, 1])).round(6).tolist()
    [1.0, 0.8]
    """
    squares_i, squares_j = (np.einsum("cr,cr->c", side, side) for side in (left, right))
    if _ALONE * len(i) < len(left) * len(right):
        products = np.array([left[a] @ right[b] for a, b in zip(i, j, strict=True)])
    else:
        products = (left @ right.T)[i, j]
    return np.asarray(_rho(products, squares_i[i] * squares_j[j]))


def _rho(products: Array, squares: Array) -> Array:
    """From the products of centred ranks and those of their sums of squares."""
    xp = namespace(products)
    scale = xp.sqrt(squares)
    return xp.clip(products / xp.where(scale > 0, scale, xp.nan), -1, 1)
