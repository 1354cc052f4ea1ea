"""A column's own moments, and the change of basis that whitens it.

Covers: sums of one column's basis functions over its valid rows, and from them the linear map
phi = W (psi - mean) whose covariance over those rows is the identity.
Does not cover: pairs of columns (`dpipe.kernels.moments`).

Why whiten before the Gram and not after: most descriptors are counts, and the functions of a column
with few values are nearly dependent. Dividing float32 products by a small eigenvalue afterwards
costs up to 0.9 in RDC (measured on a real Mordred table); products of functions that are
already orthonormal keep float32's own 1e-7, for every column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpipe.backend import Array, namespace

# Directions of smaller relative variance cannot reach any measure: HSIC weighs them by their
# variance and RDC's own tolerance (1e-7 in scale, on features at most 1e-3 apart) leaves them out.
_SMALLEST_VARIANCE = 1e-9
# What rounding leaves of a constant column's variance stays below this; one differing row in 1e8 is
# well above.
_CONSTANT = 1e-12


@dataclass
class OwnSums:
    """Sums over a column's valid rows: ``count`` (b,), ``total`` (b, K), ``product`` (b, K, K)."""

    count: Array
    total: Array
    product: Array

    def __iadd__(self, other: OwnSums) -> OwnSums:
        self.count += other.count
        self.total += other.total
        self.product += other.product
        return self


@dataclass(frozen=True)
class Own:
    """What the measures know of single columns (host arrays, float64).

    Attributes
    ----------
    count
        (b,) valid rows.
    mean
        (b, K) mean of each function.
    covariance
        (b, K, K) covariance of the functions.
    whiten
        (b, K, K) maps centred functions to uncorrelated ones of unit variance; the rows of
        directions that do not vary are 0.
    loading
        (b, K, K) maps them back.
    """

    count: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    whiten: np.ndarray
    loading: np.ndarray

    def __getitem__(self, part: slice) -> Own:
        return Own(*(getattr(self, name)[part] for name in _FIELDS))

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields by name, as they are stored on disk."""
        return {name: getattr(self, name) for name in _FIELDS}


_FIELDS = ("count", "mean", "covariance", "whiten", "loading")


def own_sums(functions: Array, valid: Array | None) -> OwnSums:
    """Sums of one row chunk.

    Parameters
    ----------
    functions
        (b, K, r) float64 basis functions, of any value where missing.
    valid
        (b, r) bool or None when complete.
    """
    xp = namespace(functions)
    b, _, rows = functions.shape
    if valid is None:
        count = xp.full(b, rows, dtype=xp.float64)
    else:
        functions = functions * valid[:, None, :]
        count = valid.sum(axis=-1, dtype=xp.float64)
    product = xp.matmul(functions, functions.transpose(0, 2, 1))
    return OwnSums(count, functions.sum(axis=-1), product)


def whitened(sums: OwnSums) -> Own:
    """The change of basis of each column from its sums (host arrays)."""
    weight = np.maximum(sums.count, 1)
    mean = sums.total / weight[:, None]
    covariance = sums.product / weight[:, None, None] - mean[:, :, None] * mean[:, None, :]
    variances, directions = np.linalg.eigh(covariance)
    largest = np.maximum(variances[:, -1:], 0)
    lives = (variances > _SMALLEST_VARIANCE * largest) & (largest > _CONSTANT)
    scale = np.sqrt(np.where(lives, variances, 1))
    inverse = np.where(lives, 1 / scale, 0)
    loading = directions * np.where(lives, scale, 0)[:, None, :]
    whiten = directions.transpose(0, 2, 1) * inverse[:, :, None]
    return Own(sums.count, mean, covariance, whiten, loading)
