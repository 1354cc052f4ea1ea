"""Exact Spearman correlation of pairs with missing cells, by ranking again inside each pair.

Covers: pairwise-complete rho as pandas defines it, for groups of columns that share their validity.
Does not cover: which pairs need it (`dpipe.passes.spearman`).
Source: Kendall & Gibbons 1990, ch. 3 (average ranks of ties).
"""

from __future__ import annotations

from dpipe.device.arrays import Array, namespace


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
    >>> import numpy as np
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
    >>> import numpy as np
    >>> joint_spearman(np.array([[1.0, 2, 3, 4]]), np.array([[1.0, 3, 2, 4]])).round(6)
    array([[0.8]])
    """
    xp = namespace(left)
    scores = []
    for side in (left, right):
        ranks = average_ranks(side)
        ranks -= (side.shape[1] + 1) / 2
        norm = xp.sqrt((ranks**2).sum(axis=1))
        scores.append(ranks / xp.where(norm > 0, norm, xp.nan)[:, None])
    return xp.clip(xp.matmul(scores[0], scores[1].T), -1, 1)
