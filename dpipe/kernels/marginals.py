"""A column's marginal moments, and the change of basis that whitens it.

Covers: sums of one column's basis functions over its valid rows, and from them the linear map
phi = W (psi - mean) whose covariance over those rows is the identity, and whether a column needs
it.
Does not cover: pairs of columns (`dpipe.kernels.moments`).

Why whiten before the Gram and not after: most descriptors are counts, and the functions of a column
with few values are nearly dependent. Dividing float32 products by a small eigenvalue afterwards
costs up to 0.9 in RDC (measured on a real Mordred table); products of functions that are
already orthonormal keep float32's own 1e-7, for every column.

Columns of many values have nearly orthonormal functions as they are. They are *plain*: their
functions enter the Gram unchanged, evaluated in float32, and are whitened afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np

from dpipe.device.arrays import Array, namespace, to_device
from dpipe.kernels.basis import legendre, legendre_sums
from dpipe.kernels.ranks import untied_scores

# Directions of smaller relative variance cannot reach any measure: HSIC weighs them by their
# variance and RDC's own tolerance (1e-7 in scale, on features at most 1e-3 apart) leaves them out.
_SMALLEST_VARIANCE = 1e-9
# What rounding leaves of a constant column's variance stays below this; one differing row in 1e8 is
# well above.
_CONSTANT = 1e-12
# Whitening after a float32 Gram multiplies its rounding by at most 1 / this; decisions within 5e-4
# of a threshold are computed again in float64 anyway.
_PLAIN_VARIANCE = 0.1
_STRIP = 2**13  # rows summed at a time: their functions stay in a core's cache


@dataclass
class MarginalSums:
    """Sums over a column's valid rows: ``count`` (b,) of 1, ``total`` (b, 2K) of psi_1 to psi_2K.

    Products of two functions up to psi_K are sums of functions up to psi_2K, so these hold all
    that the covariance of a column's functions needs.
    """

    count: Array
    total: Array

    def __iadd__(self, other: MarginalSums) -> MarginalSums:
        self.count += other.count
        self.total += other.total
        return self


@dataclass(frozen=True)
class Marginals:
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
    plain
        (b,) bool: a Gram holds this column's functions as they are, not whitened.
    """

    count: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    whiten: np.ndarray
    loading: np.ndarray
    plain: np.ndarray

    def __getitem__(self, part: slice) -> Marginals:
        return Marginals(*(getattr(self, name)[part] for name in _FIELDS))

    def on_device(self, device: str) -> Marginals:
        """The same with arrays where `device` computes; ``plain``, which steers, stays here."""
        moved = {name: to_device(array, device) for name, array in self.arrays().items()}
        return Marginals(**(moved | {"plain": self.plain}))

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields by name, as they are stored on disk."""
        return {name: getattr(self, name) for name in _FIELDS}

    def on_gram(self, rows: np.ndarray) -> np.ndarray:
        """Combinations (b, a, K) of whitened functions as combinations of those in the Gram."""
        return np.where(self.plain[:, None, None], rows @ self.whiten, rows)


_FIELDS = ("count", "mean", "covariance", "whiten", "loading", "plain")


def marginal_sums(scores: Array, functions: int, valid: Array | None) -> MarginalSums:
    """Sums of one row chunk.

    Parameters
    ----------
    scores
        (b, r) float64 centred ranks, 0 where missing.
    functions
        K, the functions of a column.
    valid
        (b, r) bool or None when complete.
    """
    xp = namespace(scores)
    b, rows = scores.shape
    if valid is None:
        count = xp.full(b, rows, dtype=xp.float64)
    else:
        count = valid.sum(axis=-1, dtype=xp.float64)
        valid = valid.astype(xp.float64)
    return MarginalSums(count, legendre_sums(scores, 2 * functions, valid))


def untied_sums(n: int, functions: int) -> MarginalSums:
    """Sums of a complete column of n rows without ties: the same for every such column.

    Examples
    --------
    >>> import numpy as np
    >>> scores = (np.random.default_rng(0).permutation(1000) + 0.5) / 1000 - 0.5
    >>> one = marginal_sums(scores[None], 3, None)
    >>> bool(np.allclose(untied_sums(1000, 3).total, one.total, atol=1e-3))
    True
    """
    total = np.array([_untied_total(n, functions)])
    return MarginalSums(np.array([float(n)]), total)


@lru_cache(maxsize=4)
def _untied_total(n: int, functions: int) -> tuple[float, ...]:
    strips = [
        marginal_sums(
            untied_scores(n, start, min(start + _STRIP, n))[None].astype(np.float64),
            functions,
            None,
        )
        for start in range(0, n, _STRIP)
    ]
    return tuple(reduce(MarginalSums.__iadd__, strips).total[0])


@lru_cache
def _products(functions: int) -> np.ndarray:
    """(K, K, 2K + 1) coefficients of psi_a psi_b in psi_0 to psi_2K, by exact quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(4 * functions + 1)
    basis = legendre(nodes[None] / 2, 2 * functions)[0]
    basis = np.concatenate([np.ones((1, len(nodes))), basis])
    first = basis[1 : functions + 1]
    return np.asarray(np.einsum("ax,bx,mx,x->abm", first, first, basis, weights / 2, optimize=True))


def whitened(sums: MarginalSums) -> Marginals:
    """The change of basis of each column from its sums (host arrays)."""
    weight = np.maximum(sums.count, 1)
    functions = sums.total.shape[1] // 2
    means = sums.total / weight[:, None]
    mean = means[:, :functions]
    with_one = np.concatenate([np.where(sums.count > 0, 1.0, 0.0)[:, None], means], axis=1)
    product = np.tensordot(with_one, _products(functions), axes=(1, 2))
    covariance = product - mean[:, :, None] * mean[:, None, :]
    variances, directions = np.linalg.eigh(covariance)
    largest = np.maximum(variances[:, -1:], 0)
    lives = (variances > _SMALLEST_VARIANCE * largest) & (largest > _CONSTANT)
    scale = np.sqrt(np.where(lives, variances, 1))
    inverse = np.where(lives, 1 / scale, 0)
    loading = directions * np.where(lives, scale, 0)[:, None, :]
    whiten = directions.transpose(0, 2, 1) * inverse[:, :, None]
    plain = variances[:, 0] > _PLAIN_VARIANCE
    return Marginals(sums.count, mean, covariance, whiten, loading, plain)
