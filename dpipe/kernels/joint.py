"""What the common rows of a tile's pairs make of their columns.

Covers: how far each column moved on the rows where the other one is valid and what its first
functions vary and share there, from the sums that a tile has anyway.
Does not cover: the measures (`dpipe.kernels.measures`), which pairs are measured again on their
common rows alone (`dpipe.engine.tiles.edges`), ranking again there (`dpipe.kernels.rerank`).
See also: docs/statistics.md.

Where cells are missing for a reason, the rows that are left are no fair sample of the other column.
What a measure divides by must then be that of the common rows. Of the first three functions it is
known exactly: their products are made of the first six.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpipe.device.arrays import Array, namespace
from dpipe.kernels.contraction import Part
from dpipe.kernels.marginals import Marginals, products
from dpipe.kernels.moments import ListMoments, Moments

DEGREE = 3
"""Functions whose covariances on the common rows are known."""

_DEAD = 1e-4  # of a function's variance, what float32 sums cannot tell from nothing
_CONSTANT = 1e-12  # variance under which a column is constant on a pair's rows


@dataclass(frozen=True)
class Common:
    """Both columns of every pair of a tile on the rows they share.

    Attributes
    ----------
    left, right
        (b_i, 2 DEGREE, b_j or 1) and (b_j, 2 DEGREE, b_i or 1) means of each column's first
        functions.
    own_left, own_right
        The same over all rows of each column, with an axis of length 1 for the other.
    partial
        (b_i, b_j) whether a column of the pair has rows that the other one lacks.
    """

    left: Array
    right: Array
    own_left: Array
    own_right: Array
    partial: Array

    def covariances(self, part: Part) -> tuple[Array, Array]:
        """Of the first functions of both, (q, b or 1, d, d) and (q or 1, b, d, d)."""
        left = _covariance(_some(self.left, part.rows, part.columns))
        right = _covariance(_some(self.right, part.columns, part.rows))
        return left, namespace(right).swapaxes(right, 0, 1)

    def own_covariances(self, part: Part) -> tuple[Array, Array]:
        """The same over all rows of each column, (q, 1, d, d) and (1, b, d, d)."""
        left = _covariance(self.own_left[part.rows])
        right = _covariance(self.own_right[part.columns])
        return left, namespace(right).swapaxes(right, 0, 1)

    def spread(self, part: Part) -> Array:
        """(q, b) variances of both columns' ranks, in units of their own, multiplied."""
        xp = namespace(self.left)
        found = 1.0
        both = zip(self.covariances(part), self.own_covariances(part), strict=True)
        for there, everywhere in both:
            own = everywhere[..., 0, 0]
            found = found * there[..., 0, 0] / xp.where(own > 0, own, 1)
        return xp.maximum(found, _CONSTANT)

    @property
    def shift(self) -> Array:
        """(b_i, b_j) how far the first two functions of both moved, added up.

        0 where no row is lost. Ranks have a mean of 0, which those of drawn rows need not have:
        once they are ranked again, they do.
        """
        xp = namespace(self.left)
        one, other = (
            xp.sqrt(there[:, 0] ** 2 + (there[:, 1] - own[:, 1]) ** 2)
            for there, own in ((self.left, self.own_left), (self.right, self.own_right))
        )
        return xp.where(self.partial, one + other.T, 0.0)


def common(moments: Moments, left: Marginals, right: Marginals) -> Common | None:
    """What the common rows make of the columns of a tile; None where no cell is missing.

    Nor of a list of pairs, whose marginals are those of the common rows.
    """
    if isinstance(moments, ListMoments):
        return None
    xp = namespace(moments.product)
    n_i, n_j = (xp.asarray(side.count) for side in (left, right))
    partial = (moments.count < n_i[:, None]) | (moments.count < n_j[None, :])
    # Sums for one other column are those of all others, or of a tile of one pair.
    if moments.sum_i.shape[2] == moments.sum_j.shape[2] == 1 and not bool(partial.any()):
        return None
    count = xp.maximum(moments.count, 1)
    own_i, own_j = (xp.asarray(side.mean[:, : 2 * DEGREE, None]) for side in (left, right))
    return Common(
        _means(moments.sum_i / count[:, None, :], left),
        _means(moments.sum_j / count.T[:, None, :], right),
        own_i,
        own_j,
        partial,
    )


def _means(gram: Array, side: Marginals) -> Array:
    """Means of the first functions (b, 2 DEGREE, others) from those of a Gram's functions."""
    xp = namespace(gram)
    first = slice(2 * DEGREE)
    # The functions of plain columns are not centred, those of others are.
    back = side.on_gram(side.loading[:, first])
    spanned = side.mean[:, : back.shape[2]]
    lost = np.where(side.plain[:, None], (back @ spanned[:, :, None])[:, :, 0], 0.0)
    return xp.matmul(xp.asarray(back), gram) + xp.asarray(side.mean[:, first] - lost)[:, :, None]


def _some(means: Array, part: slice, others: slice) -> Array:
    return means[part, :, others if means.shape[2] > 1 else slice(None)]


def _covariance(means: Array) -> Array:
    """(b, others, d, d) covariances of the first functions, from means (b, 2 d, others)."""
    xp = namespace(means)
    coefficients = xp.asarray(products(DEGREE))
    means = means.transpose(0, 2, 1)
    second = xp.tensordot(means, coefficients[:, :, 1:], axes=(2, 2)) + coefficients[:, :, 0]
    first = means[..., :DEGREE]
    return second - first[..., :, None] * first[..., None, :]


def whitening(covariance: Array) -> Array:
    """Lower triangles W (..., d, d) with W C W' = 1, 0 in directions that do not vary.

    Examples
    --------
    >>> whitening(np.array([[4.0, -2.0], [-2.0, 1.0]])).tolist()
    [[0.5, 0.0], [0.0, 0.0]]
    """
    xp = namespace(covariance)
    d = covariance.shape[-1]
    found = xp.zeros(covariance.shape)
    for k in range(d):  # Gram-Schmidt, in the order of the functions
        unit = xp.zeros(covariance.shape[:-1])
        unit[..., k] = 1
        for earlier in range(k):
            row = found[..., earlier, :]
            shared = (row * covariance[..., k]).sum(axis=-1)
            unit -= shared[..., None] * row
        variance = (unit * xp.matmul(covariance, unit[..., None])[..., 0]).sum(axis=-1)
        lives = variance > _DEAD * xp.abs(covariance[..., k, k])
        scale = xp.where(lives, 1 / xp.sqrt(xp.where(lives, variance, 1)), 0)
        found[..., k, :] = unit * scale[..., None]
    return found
