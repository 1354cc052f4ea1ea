"""An upper bound of HSIC from the few directions in which its kernel varies most.

Covers: the leading directions of the kernel on a column, HSIC's largest possible value given the
covariances of two columns in these alone.
Does not cover: HSIC itself (`dpipe.kernels.measures`), what is done with pairs that the bound
leaves in doubt (`dpipe.engine.screen`).
See also: docs/statistics.md.

HSIC is the sum of l_a m_b c_ab^2 over the directions a of one column and b of the other: l and m
are the kernel's variances in them, c the covariance of two directions. Three directions hold 98.7 %
of the variance of a column without ties. What the others can add is bounded, because covariances
of orthonormal directions make a matrix whose largest singular value is at most 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from dpipe.device.arrays import Array, namespace
from dpipe.kernels.contraction import Part, by_rows
from dpipe.kernels.copula import BASIS, kernel_root
from dpipe.kernels.joint import common
from dpipe.kernels.marginals import Marginals
from dpipe.kernels.moments import ListMoments, Moments

LEADING = 3
"""Directions that are multiplied: without ties and missing cells the bound then exceeds HSIC by
0.043 at most, and by less the stronger a pair is."""


def leading(marginals: Marginals, directions: int) -> Marginals:
    """The same columns with the kernel's leading directions for their whitened functions.

    Parameters
    ----------
    marginals
        As `dpipe.kernels.marginals.whitened` gives them.
    directions
        How many are kept, at most.

    Examples
    --------
    >>> from dpipe.kernels.marginals import untied_sums, whitened
    >>> column = leading(whitened(untied_sums(1000, BASIS)), 3)
    >>> column.whiten.shape, column.variances.shape
    ((1, 3, 12), (1, 12))
    >>> column.variances[0, :4].round(3).tolist()
    [0.293, 0.116, 0.023, 0.005]
    """
    root = kernel_root().T @ marginals.loading[:, :BASIS]
    _, scale, turned = np.linalg.svd(root, full_matrices=False)
    turned = turned[:, :directions]
    return dataclasses.replace(
        marginals,
        whiten=turned @ marginals.whiten,
        loading=marginals.loading @ turned.transpose(0, 2, 1),
        plain=np.zeros_like(marginals.plain),
        variances=scale**2,
    )


def hsic_bound(
    moments: Moments, left: Marginals | None, right: Marginals | None, parameters: Mapping[str, Any]
) -> Array:
    """What normalised HSIC is at most, given the leading directions of both columns.

    A pair's covariances are those of its common rows. On n out of a column's n_i rows, directions
    that are orthonormal on all of them have a covariance of at most n_i / n, so that the squares in
    a row of the matrix add up to n_i n_j / n^2 at most. What HSIC is divided by there is told by
    the variance of the ranks alone, and what that leaves open by how far the columns moved: where
    cells are missing this is no proof, and was below no value above 0.6 that was seen.
    """
    assert left is not None and right is not None
    assert left.variances is not None and right.variances is not None
    assert not isinstance(moments, ListMoments), "what the bound leaves is measured itself"
    xp = namespace(moments.product)
    variances_i, variances_j = xp.asarray(left.variances), xp.asarray(right.variances)
    rows = xp.asarray(left.count)[:, None] * xp.asarray(right.count)[None, :]
    most = xp.maximum(rows / xp.maximum(moments.count, 1) ** 2, 1)
    size_i, size_j = (xp.sqrt((each**2).sum(axis=1)) for each in (variances_i, variances_j))
    scale = size_i[:, None] * size_j[None, :]

    on_common = common(moments, left, right)

    def contract(part: Part) -> Array:
        # (q, k_i, b, k_j) and (q, b)
        squares, limit = part.covariance**2, most[part.rows, part.columns]
        k_i, k_j = squares.shape[1], squares.shape[3]
        lead_i, next_i, rest_i = _split(variances_i[part.rows], k_i)
        lead_j, next_j, rest_j = _split(variances_j[part.columns], k_j)
        known = xp.einsum("qa,qabc,bc->qb", lead_i, squares, lead_j)
        left_i = xp.maximum(limit[:, None, :] - squares.sum(axis=3), 0)
        left_j = xp.maximum(limit[:, :, None] - squares.sum(axis=1), 0)
        beyond_j = xp.einsum("qa,qab->qb", lead_i, left_i) * next_j[None, :]
        beyond_i = xp.einsum("bc,qbc->qb", lead_j, left_j) * next_i[:, None]
        beyond_both = limit * xp.minimum(
            next_i[:, None] * rest_j[None, :], rest_i[:, None] * next_j[None, :]
        )
        found = known + beyond_i + beyond_j + beyond_both
        return found if on_common is None else found / on_common.spread(part)

    values = by_rows(moments, left, right, contract) / xp.where(scale > 0, scale, 1)
    if on_common is not None:
        values = values + on_common.shift
    return xp.where(scale > 0, xp.clip(values, 0, 1), xp.nan)


def _split(variances: Array, directions: int) -> tuple[Array, Array, Array]:
    """Variances in the leading directions, in the one after them, and in all others together."""
    rest = variances[:, directions:]
    following = rest[:, :1].sum(axis=1)  # 0 where there is none
    return variances[:, :directions], following, rest.sum(axis=1)
