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

A column of m values has m - 1 directions that vary, whatever K is: a flag has one. A block of such
columns keeps no more of them than its columns have (k of K), and everything that is multiplied
afterwards is that much smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache, reduce
from typing import Any

import numpy as np

from dpipe.device.arrays import Array, namespace, to_device, to_host
from dpipe.kernels.basis import legendre, legendre_sums
from dpipe.kernels.ranks import untied_scores

# Directions of smaller relative variance are left out: HSIC weighs them by their variance, and
# RDC's features lie elsewhere but for 1e-5 of the value. (With 1e-9 it was off by 3e-4 for columns
# of which a few rows differ from all others.)
_SMALLEST_VARIANCE = 1e-11
# What rounding leaves of the variance of what is constant stays below this; one differing row in
# 1e8 is well above.
_CONSTANT = 1e-12
# Whitening after a float32 Gram multiplies its rounding by at most 1 / this; decisions within 5e-4
# of a threshold are computed again in float64 anyway.
_PLAIN_VARIANCE = 0.1
_BINS = 2**11  # of the uniform scale; distances within one are left out, 1e-7 of all
_STRIP = 2**13  # rows summed at a time: their functions stay in a core's cache


@dataclass
class MarginalSums:
    """Sums over a column's valid rows.

    Products of two functions up to psi_K are sums of functions up to psi_2K, so ``total`` holds
    all that the covariance of a column's functions needs.

    Attributes
    ----------
    count
        (b,) rows.
    total
        (b, 2K) sums of psi_1 to psi_2K.
    bins
        (b, 2, bins) rows, and sum of the ranks, in each bin of the uniform scale; None where no
        measure asks for distances.
    """

    count: Array
    total: Array
    bins: Array | None = None

    def __iadd__(self, other: MarginalSums) -> MarginalSums:
        self.count += other.count
        self.total += other.total
        if self.bins is not None:
            self.bins += other.bins
        return self

    def of(self, columns: np.ndarray) -> MarginalSums:
        """Those of some columns, by their places."""
        bins = None if self.bins is None else self.bins[columns]
        return MarginalSums(self.count[columns], self.total[columns], bins)

    def to_host(self) -> MarginalSums:
        """The same sums as NumPy arrays."""
        bins = None if self.bins is None else to_host(self.bins)
        return MarginalSums(to_host(self.count), to_host(self.total), bins)


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
        (b, k, E) maps the first E centred functions to uncorrelated ones of unit variance, of which
        there are k <= E <= K; the rows of directions that do not vary are 0.
    loading
        (b, K, k) maps them back to all K, by least squares where E < K.
    plain
        (b,) bool: a Gram holds this column's E functions as they are, not whitened. Never where
        k < E.
    kernel
        (b, k, k) root of the distance kernel -|u - u'| on the whitened functions under the
        column's own distribution: for whitened a and b, a' kernel kernel' b is the expectation of
        -|u - u'| a(u) b(u'). None where no measure asks for distances.
    distance
        (b,) mean distance |u - u'| of two rows, None likewise.
    variances
        (b, E) variances of HSIC's kernel in its own directions on the column, the largest first;
        the whitened functions are then the first of these directions. None where they are others.
    """

    count: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    whiten: np.ndarray
    loading: np.ndarray
    plain: np.ndarray
    kernel: np.ndarray | None = None
    distance: np.ndarray | None = None
    variances: np.ndarray | None = None
    _whole: tuple[Marginals, slice | np.ndarray] | None = field(
        default=None, init=False, repr=False
    )
    _known: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def joined(cls, parts: Sequence[Marginals]) -> Marginals:
        """Columns of several blocks, with the same number of functions, as one."""
        arrays = [part.arrays() for part in parts]
        return cls(**{name: np.concatenate([each[name] for each in arrays]) for name in arrays[0]})

    def __getitem__(self, part: slice | np.ndarray) -> Marginals:
        """A part of the columns, or some of them by their places, in any order."""
        found = Marginals(**{name: array[part] for name, array in self.arrays().items()})
        object.__setattr__(found, "_whole", (self, part))
        return found

    def worked_out(
        self, what: Hashable, work: Callable[[Marginals], list[np.ndarray]]
    ) -> list[np.ndarray]:
        """What follows from each column alone, as arrays (b, ...): once for all tiles of a block.

        A part of a block takes its part of what is known of the whole.
        """
        if self._whole is not None:
            block, part = self._whole
            return [array[part] for array in block.worked_out(what, work)]
        if what not in self._known:
            self._known[what] = work(self)
        found: list[np.ndarray] = self._known[what]
        return found

    def on_device(self, device: str) -> Marginals:
        """The same with arrays where `device` computes; ``plain``, which steers, stays here."""
        moved = {name: to_device(array, device) for name, array in self.arrays().items()}
        return Marginals(**(moved | {"plain": self.plain}))

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields by name, as they are stored on disk."""
        names = (each.name for each in fields(self) if not each.name.startswith("_"))
        found = {name: getattr(self, name) for name in names}
        return {name: array for name, array in found.items() if array is not None}

    def on_gram(self, rows: np.ndarray) -> np.ndarray:
        """Combinations (b, a, k) of whitened functions as combinations of those in a Gram."""
        if not self.plain.any():
            return rows
        return np.where(self.plain[:, None, None], rows @ self.whiten, rows)


def marginal_sums(
    scores: Array, functions: int, valid: Array | None, distances: bool = False
) -> MarginalSums:
    """Sums of one row chunk.

    Parameters
    ----------
    scores
        (b, r) float64 centred ranks, 0 where missing.
    functions
        K, the functions of a column.
    valid
        (b, r) bool or None when complete.
    distances
        Whether to count rows in bins too, for `Marginals.kernel`.
    """
    xp = namespace(scores)
    b, rows = scores.shape
    bins = _bins(scores, valid) if distances else None
    if valid is None:
        count = xp.full(b, rows, dtype=xp.float64)
    else:
        count = valid.sum(axis=-1, dtype=xp.float64)
        valid = valid.astype(xp.float64)
    return MarginalSums(count, legendre_sums(scores, 2 * functions, valid), bins)


def _bins(scores: Array, valid: Array | None) -> Array:
    """Rows and sum of scores in each bin, (b, 2, bins)."""
    xp = namespace(scores)
    b = len(scores)
    place = xp.clip((scores + 0.5) * _BINS, 0, _BINS - 1).astype(xp.int64)
    place += xp.arange(b)[:, None] * _BINS
    ranks = scores
    if valid is not None:
        place, ranks = place[valid], scores[valid]
    place, ranks = place.reshape(-1), ranks.reshape(-1)
    counts = xp.bincount(place, minlength=b * _BINS).astype(xp.float64)
    sums = xp.bincount(place, weights=ranks, minlength=b * _BINS)
    return xp.stack([counts.reshape(b, _BINS), sums.reshape(b, _BINS)], axis=1)


def untied_sums(n: int, functions: int, distances: bool = False) -> MarginalSums:
    """Sums of a complete column of n rows without ties: the same for every such column.

    Examples
    --------
    >>> import numpy as np
    >>> scores = (np.random.default_rng(0).permutation(1000) + 0.5) / 1000 - 0.5
    >>> one = marginal_sums(scores[None], 3, None)
    >>> bool(np.allclose(untied_sums(1000, 3).total, one.total, atol=1e-3))
    True
    """
    known = _untied_sums(n, functions, distances)
    bins = None if known.bins is None else known.bins.copy()
    return MarginalSums(known.count.copy(), known.total.copy(), bins)


@lru_cache(maxsize=4)
def _untied_sums(n: int, functions: int, distances: bool) -> MarginalSums:
    strips = (
        marginal_sums(
            untied_scores(n, start, min(start + _STRIP, n))[None].astype(np.float64),
            functions,
            None,
            distances,
        )
        for start in range(0, n, _STRIP)
    )
    return reduce(MarginalSums.__iadd__, strips)


@lru_cache
def products(functions: int) -> np.ndarray:
    """(K, K, 2K + 1) coefficients of psi_a psi_b in psi_0 to psi_2K, by exact quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(4 * functions + 1)
    basis = legendre(nodes[None] / 2, 2 * functions)[0]
    basis = np.concatenate([np.ones((1, len(nodes))), basis])
    first = basis[1 : functions + 1]
    return np.asarray(np.einsum("ax,bx,mx,x->abm", first, first, basis, weights / 2, optimize=True))


def whitened(
    sums: MarginalSums, needed: np.ndarray | None = None, spanned: int | None = None
) -> Marginals:
    """The change of basis of each column from its sums (host arrays).

    Parameters
    ----------
    sums
        Over all rows.
    needed
        (b,) most directions in which each column can vary, m - 1 of one of m values or E; all E
        when None. The largest of them is k.
    spanned
        E, the functions that a Gram is made of; all K when None. Those beyond matter to columns of
        few values, whose first functions determine them.
    """
    weight = np.maximum(sums.count, 1)
    functions = sums.total.shape[1] // 2
    means = sums.total / weight[:, None]
    mean = means[:, :functions]
    with_one = np.concatenate([np.where(sums.count > 0, 1.0, 0.0)[:, None], means], axis=1)
    # One by one, so that no digit depends on other columns.
    known = products(functions).reshape(functions**2, -1).T
    product = np.matmul(with_one[:, None, :], known).reshape(-1, functions, functions)
    covariance = product - mean[:, :, None] * mean[:, None, :]
    spanned = functions if spanned is None else spanned
    variances, directions = np.linalg.eigh(covariance[:, :spanned, :spanned])
    largest = np.maximum(variances[:, -1:], 0)
    lives = variances > np.maximum(_SMALLEST_VARIANCE * largest, _CONSTANT)
    first = 0
    if needed is not None:
        lives &= np.arange(spanned) >= spanned - needed[:, None]
        first = spanned - int(needed.max())
    plain = (variances[:, 0] > _PLAIN_VARIANCE) & (first == 0)
    variances, directions, lives = variances[:, first:], directions[:, :, first:], lives[:, first:]
    scale = np.sqrt(np.where(lives, variances, 1))
    inverse = np.where(lives, 1 / scale, 0)
    whiten = directions.transpose(0, 2, 1) * inverse[:, :, None]
    loading = covariance[:, :, :spanned] @ whiten.transpose(0, 2, 1)
    kernel, distance = (None, None) if sums.bins is None else _distances(sums.bins, mean, whiten)
    return Marginals(sums.count, mean, covariance, whiten, loading, plain, kernel, distance)


def _distances(
    bins: np.ndarray, mean: np.ndarray, whiten: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`Marginals.kernel` and `Marginals.distance` of each column.

    With the running sums G(t) of a function over the rows up to t, which end at 0 for a centred
    one, the expectation of -|u - u'| a(u) b(u') is twice the integral of G_a G_b; with the
    distribution function F the mean distance is twice that of F (1 - F). In both the running sums
    are steps between the ranks, so the root of the kernel is their values, triangulated. A bin
    stands at the mean of its ranks: where it holds one rank, as for a column of few values, that
    is exact.
    """
    kernel = np.zeros((len(whiten), whiten.shape[1], whiten.shape[1]))
    distance = np.zeros(len(bins))
    for column, (counts, sums) in enumerate(bins):
        held = np.flatnonzero(counts)
        if len(held) < 2:
            continue
        shares = counts[held] / counts.sum()
        scores = sums[held] / counts[held]
        steps = np.diff(scores)
        below = np.cumsum(shares)[:-1]
        distance[column] = 2 * (steps * below * (1 - below)).sum()
        functions = legendre(scores[None], whiten.shape[2])[0]
        functions -= mean[column, : len(functions), None]
        running = np.cumsum(whiten[column] @ functions * shares, axis=1)[:, :-1]
        triangle = np.asarray(np.linalg.qr((running * np.sqrt(2 * steps)).T, mode="r"))
        kernel[column, :, : len(triangle)] = triangle.T
    return kernel, distance
