"""How much each column tells of a target: nHSIC and RDC against numbers and against classes.

Covers: a target's functions, their cross moments with a block of columns, and the measures from
these, in float64 throughout.
Does not cover: pairs of columns (`dpipe.kernels.measures`), reading or scheduling.
See also: docs/statistics.md.

A target of numbers is expanded in the basis of the columns. A target of classes has one indicator
function for each class: the delta kernel is their sum of products, so HSIC is a sum of squared
covariances there too, and the largest canonical correlation is that of the features with the
indicators. Everything here is of the rows where column and target are both known, and both are
ranked among these.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from dpipe.kernels.basis import legendre
from dpipe.kernels.copula import BASIS, feature_directions, kernel_root, self_hsic
from dpipe.kernels.marginals import Marginals, marginal_sums, whitened
from dpipe.kernels.spectrum import largest_square

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """What the moments and measures need to know of one target.

    Attributes
    ----------
    values
        (n,) centred ranks of a target of numbers, or the number of each row's class.
    shares
        (C,) share of each class among the rows; None for a target of numbers.
    marginals
        Moments of the target's own functions; None for classes.
    """

    values: NDArray[np.float64] | NDArray[np.int64]
    shares: Floats | None
    marginals: Marginals | None

    @property
    def n_functions(self) -> int:
        """Functions the target is expanded in."""
        return BASIS if self.shares is None else len(self.shares)

    def functions(self, rows: slice) -> Floats:
        """(functions, rows): its values on some rows."""
        if self.shares is not None:
            classes = np.arange(len(self.shares))
            return np.asarray(self.values[rows] == classes[:, None], dtype=np.float64)
        return np.asarray(legendre(np.asarray(self.values[rows], np.float64)[None], BASIS)[0])


def of_numbers(scores: Floats) -> Target:
    """A target of numbers, from its centred ranks (n,)."""
    return Target(scores, None, whitened(marginal_sums(scores[None], BASIS, None)))


def of_classes(codes: NDArray[np.int64]) -> Target:
    """A target of classes 0, 1, ... (n,), each of which occurs.

    Examples
    --------
    >>> import numpy as np
    >>> of_classes(np.array([0, 1, 1])).shares.round(3).tolist()
    [0.333, 0.667]
    """
    return Target(codes, np.bincount(codes) / max(1, len(codes)), None)


@dataclass
class CrossSums:
    """Sums over rows for every column of a block and every function of the targets.

    Attributes
    ----------
    count
        () rows.
    product
        (b, K, q) sum of psi_k(column) g(target).
    total
        (b, K) sum of psi_k(column).
    total_target
        (q,) sum of g(target).
    """

    count: Floats
    product: Floats
    total: Floats
    total_target: Floats

    def __iadd__(self, other: CrossSums) -> CrossSums:
        for field in fields(self):
            mine = getattr(self, field.name)
            mine += getattr(other, field.name)
        return self


_AT_ONCE = 2**17  # values of the functions of a column group: they stay in a core's cache


def cross_sums(scores: Floats, targets: tuple[Target, ...], rows: slice) -> CrossSums:
    """Sums of one row chunk.

    Parameters
    ----------
    scores
        (b, r) float64 centred ranks of a block of columns.
    targets
        The targets, of all rows.
    rows
        Which rows of theirs the chunk is.
    """
    functions = np.concatenate([target.functions(rows) for target in targets])
    b, r = scores.shape
    product = np.empty((b, BASIS, len(functions)))
    total = np.empty((b, BASIS))
    step = max(1, _AT_ONCE // (BASIS * max(r, 1)))
    for start in range(0, b, step):
        part = slice(start, start + step)
        psi = legendre(scores[part], BASIS)
        product[part] = psi @ functions.T
        total[part] = psi.sum(axis=2)
    return CrossSums(np.array(float(r)), product, total, functions.sum(axis=1))


@dataclass(frozen=True)
class Relevance:
    """(b, t) nHSIC and RDC of every column with every target, in [0, 1]; NaN for a constant."""

    hsic: Floats
    rdc: Floats


def relevance(
    sums: CrossSums,
    marginals: Marginals,
    targets: tuple[Target, ...],
    seed: int = 0,
    seeds: int = 5,
    degree: int | None = None,
) -> Relevance:
    """The measures of a block of columns with every target.

    Parameters
    ----------
    sums
        Added up over all rows.
    marginals
        The columns' own moments.
    targets
        As given to `cross_sums`.
    seed, seeds, degree
        Of RDC, as for pairs of columns.
    """
    drawn = (seed, seeds, degree)
    lefts = [span @ marginals.whiten for span in feature_directions(marginals.loading, *drawn)]
    hsic, rdc = np.empty((2, len(marginals.whiten), len(targets)))
    start = 0
    for number, target in enumerate(targets):
        part = slice(start, start + target.n_functions)
        start = part.stop
        covariance = _covariance(sums, part)
        hsic[:, number] = _hsic(covariance, marginals, target)
        rdc[:, number] = np.median(
            [
                _canonical(left @ covariance @ right)
                for left, right in zip(lefts, _rights(target, *drawn), strict=True)
            ],
            axis=0,
        )
    defined = (marginals.whiten != 0).any(axis=(1, 2))[:, None]
    return Relevance(np.where(defined, hsic, np.nan), np.where(defined, rdc, np.nan))


def _covariance(sums: CrossSums, part: slice) -> Floats:
    """(b, K, functions) of the functions of columns and of a target."""
    mean, mean_target = sums.total / sums.count, sums.total_target[part] / sums.count
    found: Floats = sums.product[:, :, part] / sums.count
    return found - mean[:, :, None] * mean_target


def _hsic(covariance: Floats, marginals: Marginals, target: Target) -> Floats:
    root = kernel_root()
    if target.marginals is not None:
        side = root
        scale = float(self_hsic(root.T @ target.marginals.loading)[0])
    else:
        assert target.shares is not None
        side = np.eye(len(target.shares))
        scale = _self_hsic_of_classes(target.shares)
    norm = self_hsic(root.T @ marginals.loading) * scale
    squares = ((root.T @ covariance @ side) ** 2).sum(axis=(1, 2))
    return np.asarray(np.clip(squares / np.where(norm > 0, norm, 1), 0, 1))


def _self_hsic_of_classes(shares: Floats) -> float:
    """Square root of the delta kernel's HSIC with itself.

    The covariance of the indicators is diag(p) - p p'; its squared norm is
    sum p^2 - 2 sum p^3 + (sum p^2)^2.
    """
    squares = float((shares**2).sum())
    return float(np.sqrt(max(squares - 2 * float((shares**3).sum()) + squares**2, 0.0)))


def _rights(target: Target, seed: int, seeds: int, degree: int | None) -> list[Floats]:
    """For each draw (functions, d): uncorrelated functions of unit variance of the target."""
    if target.marginals is not None:
        loading, whiten = target.marginals.loading, target.marginals.whiten
        return [(span @ whiten)[0].T for span in feature_directions(loading, seed, seeds, degree)]
    assert target.shares is not None
    # diag(1 / p) is a generalised inverse of diag(p) - p p', so its root whitens the indicators.
    return [np.diag(1 / np.sqrt(target.shares))] * (seeds if degree is None else 1)


def _canonical(inner: Floats) -> Floats:
    """Largest canonical correlation of each column from (b, d, e) of whitened functions."""
    return np.asarray(np.sqrt(np.clip(largest_square(inner), 0, 1)))
