"""The measures as values: how many functions each needs and how it contracts a tile's moments.

Covers: Spearman's rho, copula HSIC, RDC, and the rank-score Gram matrix that VIF is computed from.
Does not cover: forming the moments (`dpipe.kernels.moments`) or choosing what is redundant.
See also: docs/statistics.md, with every formula, source and accuracy.

The engine never asks which measure it runs: it looks a name up in `MEASURES`, evaluates as many
functions as the widest measure needs, and hands each one the same moments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from dpipe.device.arrays import Array, namespace
from dpipe.kernels.basis import legendre
from dpipe.kernels.draws import rdc_draws
from dpipe.kernels.marginals import Marginals
from dpipe.kernels.moments import Moments

BASIS = 12
"""Functions of the nonlinear measures: HSIC is then within 1e-6 of the dense estimate."""

HSIC_BANDWIDTH = 1 - 1 / np.sqrt(2)
"""Median distance of two uniform draws, the usual bandwidth of the Gaussian kernel."""

RDC_SCALE = 1 / 6
RDC_TOLERANCE = 1e-7

_CONSTANT = 1e-12  # variance (of unit-variance scores) under which a column is constant on a pair
_PAIRS_AT_ONCE = 2**14  # bounds the temporaries of a contraction to a few tens of MB


@dataclass(frozen=True)
class Measure:
    """A measure of dependence, as data.

    Attributes
    ----------
    name
        Its name in files and on the command line.
    functions
        K, the basis functions a column is expanded in; 1 keeps the ranks in float64, more are
        float32, and whitened where a column needs it.
    contract
        (moments, marginals_i, marginals_j, parameters) -> (b_i, b_j) similarities, NaN where
        undefined. On the diagonal the two are one object, and the tile is taken to be symmetric.
    needs_marginals
        Whether `contract` reads the columns' marginal moments.
    pairwise
        Whether a pair with too few common rows is undefined.
    dtype
        Type its matrix is stored in.
    """

    name: str
    functions: int
    contract: Callable[[Moments, Marginals | None, Marginals | None, Mapping[str, Any]], Array]
    needs_marginals: bool
    pairwise: bool = True
    dtype: str = "float32"


def _spearman(
    moments: Moments,
    marginals_i: Marginals | None,
    marginals_j: Marginals | None,
    parameters: Mapping[str, Any],
) -> Array:
    """Pearson correlation of the columns' marginal ranks over jointly valid rows."""
    xp = namespace(moments.product)
    count = xp.maximum(moments.count, 1)
    mean_i = moments.sum_i[:, 0, :] / count
    mean_j = moments.sum_j[:, 0, :].T / count
    variance_i = moments.square_i / count - mean_i**2
    variance_j = moments.square_j.T / count - mean_j**2
    covariance = moments.product[:, 0, :, 0] / count - mean_i * mean_j
    varies = (variance_i > _CONSTANT) & (variance_j > _CONSTANT)
    scale = xp.sqrt(xp.where(varies, variance_i * variance_j, 1))
    return xp.where(varies, xp.clip(covariance / scale, -1, 1), xp.nan)


def _gram(
    moments: Moments,
    marginals_i: Marginals | None,
    marginals_j: Marginals | None,
    parameters: Mapping[str, Any],
) -> Array:
    """Cosine of the rank scores with missing cells at the mean rank: positive semi-definite."""
    assert marginals_i is not None and marginals_j is not None
    xp = namespace(moments.product)
    norms = [
        xp.asarray(
            np.sqrt(marginals.count * (marginals.covariance[:, 0, 0] + marginals.mean[:, 0] ** 2))
        )
        for marginals in (marginals_i, marginals_j)
    ]
    scale = norms[0][:, None] * norms[1][None, :]
    return xp.where(scale > 0, moments.product[:, 0, :, 0] / xp.where(scale > 0, scale, 1), xp.nan)


def _covariances(moments: Moments) -> Callable[[slice, slice], Array]:
    """A function giving C (q, K, b, K) of a few rows, and some columns, of the tile at a time."""
    xp = namespace(moments.product)
    count = xp.maximum(moments.count, 1)
    mean_j = moments.sum_j.transpose(2, 0, 1) / count[:, :, None]  # (b_i or 1, b_j, K)

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


def _by_rows(
    moments: Moments, contract: Callable[[slice, slice, Array], Array], symmetric: bool
) -> Array:
    """Contract a tile a few of its rows at a time, so that temporaries stay small.

    Of a symmetric tile only what lies right of the diagonal is contracted.
    """
    xp = namespace(moments.product)
    b_i, b_j = moments.product.shape[0], moments.product.shape[2]
    covariance = _covariances(moments)
    values = xp.empty((b_i, b_j))
    step = max(1, _PAIRS_AT_ONCE // max(b_j, 1))
    for start in range(0, b_i, step):
        part = slice(start, min(start + step, b_i))
        others = slice(start if symmetric else 0, b_j)
        values[part, others] = contract(part, others, covariance(part, others))
        if symmetric:
            below = slice(part.stop, b_j)
            values[below, part] = values[part, below].T
    return values


def _project(covariance: Array, left: Array, right: Array) -> Array:
    """left_i C_ij right_j' for every pair: (q, K, b, K) -> (b, q, a, a)."""
    xp = namespace(covariance)
    q, k, b, _ = covariance.shape
    a = left.shape[1]
    half = xp.matmul(left, covariance.reshape(q, k, b * k)).reshape(q * a, b, k)
    full = xp.matmul(half.transpose(1, 0, 2), right.transpose(0, 2, 1))
    return full.reshape(b, q, a, right.shape[1])


def _hsic(
    moments: Moments,
    marginals_i: Marginals | None,
    marginals_j: Marginals | None,
    parameters: Mapping[str, Any],
) -> Array:
    """Normalised HSIC of the ranks under a Gaussian kernel, in [0, 1]."""
    assert marginals_i is not None and marginals_j is not None
    xp = namespace(moments.product)
    root = kernel_root(BASIS, parameters.get("bandwidth", HSIC_BANDWIDTH))
    left, right = (
        xp.asarray(marginals.on_gram(root.T @ marginals.loading))
        for marginals in (marginals_i, marginals_j)
    )
    scale_i, scale_j = (
        xp.asarray(self_hsic(root, marginals)) for marginals in (marginals_i, marginals_j)
    )

    def contract(part: slice, others: slice, covariance: Array) -> Array:
        return (_project(covariance, left[part], right[others]) ** 2).sum(axis=(2, 3)).T

    scale = scale_i[:, None] * scale_j[None, :]
    values = _by_rows(moments, contract, marginals_i is marginals_j) / xp.where(scale > 0, scale, 1)
    return xp.where(scale > 0, xp.clip(values, 0, 1), xp.nan)


def self_hsic(root: np.ndarray, marginals: Marginals) -> np.ndarray:
    """Square root of each column's HSIC with itself."""
    side = root.T @ marginals.loading
    return np.asarray(np.sqrt(((side @ side.transpose(0, 2, 1)) ** 2).sum(axis=(1, 2))))


def _rdc(
    moments: Moments,
    marginals_i: Marginals | None,
    marginals_j: Marginals | None,
    parameters: Mapping[str, Any],
) -> Array:
    """Randomized dependence coefficient: the median over draws, in [0, 1]."""
    assert marginals_i is not None and marginals_j is not None
    xp = namespace(moments.product)
    spans = feature_spans(
        parameters.get("seed", 0), parameters.get("seeds", 5), parameters.get("degree")
    )
    values = xp.stack([_canonical(moments, marginals_i, marginals_j, span) for span in spans])
    return xp.median(values, axis=0)


def _canonical(
    moments: Moments, marginals_i: Marginals, marginals_j: Marginals, features: np.ndarray
) -> Array:
    """Largest canonical correlation of the features (K, m) of every pair of columns."""
    xp = namespace(moments.product)
    left, right = (
        xp.asarray(marginals.on_gram(orthonormal_span(marginals.loading, features)))
        for marginals in (marginals_i, marginals_j)
    )

    def contract(part: slice, others: slice, covariance: Array) -> Array:
        inner = _project(covariance, left[part], right[others])
        gram = xp.matmul(inner, inner.transpose(0, 1, 3, 2))
        return xp.linalg.eigvalsh(gram)[..., -1].T

    values = xp.sqrt(xp.clip(_by_rows(moments, contract, marginals_i is marginals_j), 0, 1))
    varies = (np.any(side != 0, axis=(1, 2)) for side in (left, right))
    defined_i, defined_j = varies
    return xp.where(defined_i[:, None] & defined_j[None, :], values, xp.nan)


def orthonormal_span(loading: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Rows spanning each column's features in its whitened coordinates: (b, d, K), zero-padded.

    Gram-Schmidt with column pivoting on the features (b, K, m) themselves, stopping at the relative
    tolerance of R's `cancor`: which directions a column has depends on how its features scale, so
    the decision is taken there and not among already whitened directions.
    """
    residual = np.matmul(loading.transpose(0, 2, 1), features)  # (b, K, m)
    b, k, _ = residual.shape
    columns = np.arange(b)
    found = []
    largest = np.zeros(b)
    for step in range(k):
        norms = np.linalg.norm(residual, axis=1)
        pivot = np.argmax(norms, axis=1)
        norm = norms[columns, pivot]
        largest = np.maximum(largest, norm) if step == 0 else largest
        lives = (norm > RDC_TOLERANCE * largest) & (norm > 0)
        if not lives.any():
            break
        direction = residual[columns, :, pivot] / np.where(lives, norm, 1)[:, None]
        direction[~lives] = 0
        for _ in range(2):  # twice is enough (Kahan; Parlett 1980)
            overlap = np.einsum("bk,bkm->bm", direction, residual)
            residual = residual - direction[:, :, None] * overlap[:, None, :]
        residual[~lives] = 0
        found.append(direction)
    return np.stack(found, axis=1) if found else np.zeros((b, 1, k))


@lru_cache
def _quadrature() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes u (64,), weights (64,) on [0, 1] and the basis (K, 64) there."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    return (nodes + 1) / 2, weights / 2, legendre(nodes[None] / 2, BASIS)[0]


@lru_cache
def kernel_root(functions: int, bandwidth: float) -> np.ndarray:
    """A (K, K) with A A' = T, the Gaussian kernel's coefficients in the basis."""
    u, weights, basis = _quadrature()
    kernel = np.exp(-((u[:, None] - u[None, :]) ** 2) / (2 * bandwidth**2))
    weighted = basis[:functions] * weights
    values, vectors = np.linalg.eigh(weighted @ kernel @ weighted.T)
    return np.asarray(vectors * np.sqrt(np.clip(values, 0, None)))


@lru_cache
def feature_spans(seed: int, seeds: int, degree: int | None) -> tuple[np.ndarray, ...]:
    """Coefficients (K, m) of each draw's features in the basis."""
    if degree is not None:
        return (np.eye(BASIS)[:, :degree],)
    u, weights, basis = _quadrature()
    return tuple(
        (basis * weights) @ np.sin(RDC_SCALE / 2 * (np.outer(u, w) + b))
        for w, b in rdc_draws(seed, seeds)
    )


MEASURES: Mapping[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("spearman", 1, _spearman, needs_marginals=False),
        Measure("gram", 1, _gram, needs_marginals=True, pairwise=False, dtype="float64"),
        Measure("hsic", BASIS, _hsic, needs_marginals=True),
        Measure("rdc", BASIS, _rdc, needs_marginals=True),
    )
}
