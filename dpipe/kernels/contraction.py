"""From moments to covariances of pairs, and what every measure of several functions does with them.

Covers: the pairs of a tile a few of its rows at a time, and those of a list; their covariances
with missing cells, projected on combinations of functions; memory of the temporaries.
Does not cover: the measures (`dpipe.kernels.measures`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from dpipe.device.arrays import Array, namespace
from dpipe.kernels.marginals import Marginals
from dpipe.kernels.moments import ListMoments, Moments

_PAIRS_IN_CACHE = 2**12  # their covariances, and what follows from them, stay in a core's cache
_PAIRS_ON_CARD = 2**14  # a card needs more to be busy; bounds the temporaries to a few tens of MB


@dataclass(frozen=True)
class Part:
    """Some pairs: a few rows of a tile with some of its columns, or a stretch of a list.

    Its arrays over pairs have the shape (q, b) of rows and columns, (q, 1) of a list, where the
    column on the right is another one in each row.

    Attributes
    ----------
    rows, columns
        Places of the left and of the right columns in their blocks.
    covariance
        (q, k_i, b, k_j) of the functions in the Gram: of a tile in float32, as its products were.
    count
        (q or 1, b or 1) common rows.
    listed
        Whether the pairs are a list.
    """

    rows: slice
    columns: slice
    covariance: Array
    count: Array
    listed: bool

    def left(self, values: Array) -> Array:
        """What is known of each left column, (q, 1, ...)."""
        return values[self.rows, None]

    def right(self, values: Array) -> Array:
        """What is known of each right column, (1, b, ...) or (q, 1, ...)."""
        return values[self.rows, None] if self.listed else values[None, self.columns]

    def project(self, left: Array, right: Array) -> Array:
        """left_i C_ij right_j' of every pair, (q, b, a_i, a_j).

        `left` (b_i, a_i, k_i) and `right` (b_j, a_j, k_j) are those of all columns.
        """
        return self.project_each(left[:, None], right[:, None])[:, :, 0]

    def project_each(self, left: Array, right: Array) -> Array:
        """The same for several projections, an axis after the first: (q, b, draws, a_i, a_j)."""
        xp = namespace(left)
        q, k_i, b, k_j = self.covariance.shape
        dtype = self.covariance.dtype
        mine = left[self.rows].astype(dtype)
        other = xp.swapaxes(right[self.columns], -1, -2).astype(dtype)
        if self.listed:  # pair by pair, so that no digit depends on what stands beside it
            half = xp.matmul(mine, self.covariance[:, None, :, 0, :])
            return xp.matmul(half, other)[:, None]
        draws, a_i = mine.shape[1:3]
        half = xp.matmul(
            mine.reshape(q, draws * a_i, k_i), self.covariance.reshape(q, k_i, b * k_j)
        )
        half = half.reshape(q, draws, a_i, b, k_j).transpose(3, 1, 0, 2, 4)
        full = xp.matmul(half.reshape(b, draws, q * a_i, k_j), other)
        return full.reshape(b, draws, q, a_i, -1).transpose(2, 0, 1, 3, 4)


def by_rows(
    moments: Moments, left: Marginals, right: Marginals, contract: Callable[[Part], Array]
) -> Array:
    """Contract a tile, or a list of pairs, a part at a time, so that temporaries stay small.

    Parameters
    ----------
    moments
        Of the pairs.
    left, right
        The marginals of both sides; where they are one object, only what lies right of the
        diagonal is contracted.
    contract
        A part -> its values (q, b).

    Returns
    -------
    (b_i, b_j), or (pairs, 1) of a list.
    """
    xp = namespace(moments.product)
    symmetric = left is right
    values = xp.empty((moments.product.shape[0], moments.product.shape[2]))
    for part in _parts(moments, symmetric):
        values[part.rows, slice(0, 1) if part.listed else part.columns] = contract(part)
        if symmetric:
            below = slice(part.rows.stop, None)
            values[below, part.rows] = values[part.rows, below].T
    return values


def _parts(moments: Moments, symmetric: bool) -> Iterator[Part]:
    xp = namespace(moments.product)
    listed = isinstance(moments, ListMoments)
    dtype = "float64" if listed else "float32"
    count = xp.maximum(moments.count, 1)
    mean_j = moments.sum_j.transpose(2, 0, 1) / count[:, :, None]  # (b_i or 1, b_j, k_j)
    b_i, _, b_j, k_j = moments.product.shape
    step = max(1, (_PAIRS_IN_CACHE if xp is np else _PAIRS_ON_CARD) // max(b_j, 1))
    for start in range(0, b_i, step):
        rows = slice(start, min(start + step, b_i))
        others = slice(start if symmetric else 0, b_j)
        of_all = slice(None)  # along axes of length 1
        n = count[rows if len(count) > 1 else of_all, others if count.shape[1] > 1 else of_all]
        mean_i = moments.sum_i[rows, :, others if moments.sum_i.shape[2] > 1 else of_all]
        seen_j = mean_j[rows if len(mean_j) > 1 else of_all, others]
        product = moments.product[rows, :, others]
        # Both axes of the right side as one: loops over ten functions would cost twice the time.
        shape, flat = product.shape, (*product.shape[:2], -1)
        covariance = (product.reshape(flat) / _repeated(n, k_j)[:, None]).astype(dtype)
        mean = _repeated((mean_i / n[:, None, :]).astype(dtype), k_j)
        covariance -= mean * seen_j.reshape(len(seen_j), 1, -1).astype(dtype)
        yield Part(rows, rows if listed else others, covariance.reshape(shape), n, listed)


def _repeated(values: Array, times: int) -> Array:
    """Each value of the last axis so many times, if they are more than one."""
    return values if values.shape[-1] == 1 else namespace(values).repeat(values, times, axis=-1)
