"""From a tile's moments to covariances of pairs, a few rows of the tile at a time.

Covers: what the measures of several functions share: covariances with missing cells, projecting
them on combinations of functions, memory of the temporaries.
Does not cover: the measures (`dpipe.kernels.measures`).
"""

from __future__ import annotations

from collections.abc import Callable

from dpipe.device.arrays import Array, namespace
from dpipe.kernels.moments import Moments

_PAIRS_AT_ONCE = 2**14  # bounds the temporaries of a contraction to a few tens of MB


def by_rows(
    moments: Moments, contract: Callable[[slice, slice, Array], Array], symmetric: bool
) -> Array:
    """Contract a tile a few of its rows at a time, so that temporaries stay small.

    Parameters
    ----------
    moments
        The tile.
    contract
        (rows, columns, covariances (q, k_i, b, k_j)) -> values (q, b) of that part.
    symmetric
        Whether only what lies right of the diagonal has to be contracted.
    """
    xp = namespace(moments.product)
    covariances = _covariances(moments)
    b_i, b_j = moments.product.shape[0], moments.product.shape[2]
    values = xp.empty((b_i, b_j))
    step = max(1, _PAIRS_AT_ONCE // max(b_j, 1))
    for start in range(0, b_i, step):
        part = slice(start, min(start + step, b_i))
        others = slice(start if symmetric else 0, b_j)
        values[part, others] = contract(part, others, covariances(part, others))
        if symmetric:
            below = slice(part.stop, b_j)
            values[below, part] = values[part, below].T
    return values


def project(covariance: Array, left: Array, right: Array) -> Array:
    """left_i C_ij right_j' for every pair: (q, k_i, b, k_j) -> (b, q, a_i, a_j)."""
    return project_each(covariance, left[:, None], right[:, None])[:, 0]


def project_each(covariance: Array, left: Array, right: Array) -> Array:
    """The same for several projections at once.

    (q, k_i, b, k_j) with (q, draws, a_i, k_i) and (b, draws, a_j, k_j) -> (b, draws, q, a_i, a_j).
    """
    xp = namespace(covariance)
    q, k_i, b, k_j = covariance.shape
    draws, a_i = left.shape[1:3]
    half = xp.matmul(left.reshape(q, draws * a_i, k_i), covariance.reshape(q, k_i, b * k_j))
    half = half.reshape(q, draws, a_i, b, k_j).transpose(3, 1, 0, 2, 4)
    full = xp.matmul(half.reshape(b, draws, q * a_i, k_j), xp.swapaxes(right, -1, -2))
    return full.reshape(b, draws, q, a_i, right.shape[2])


def _covariances(moments: Moments) -> Callable[[slice, slice], Array]:
    """A function giving C (q, k_i, b, k_j) of a few rows and some columns of the tile at a time."""
    xp = namespace(moments.product)
    count = xp.maximum(moments.count, 1)
    mean_j = moments.sum_j.transpose(2, 0, 1) / count[:, :, None]  # (b_i or 1, b_j, k_j)

    def rows(part: slice, others: slice) -> Array:
        seen_part = part if count.shape[0] > 1 else slice(None)
        seen_others = others if count.shape[1] > 1 else slice(None)
        n = count[seen_part, seen_others]
        seen = others if moments.sum_i.shape[2] > 1 else slice(None)
        mean_i = moments.sum_i[part, :, seen] / n[:, None, :]
        seen_j = mean_j[part if len(mean_j) > 1 else slice(None), others]
        product = moments.product[part, :, others] / n[:, None, :, None]
        product -= mean_i[:, :, :, None] * seen_j[:, None, :, :]
        return product

    return rows
