"""HSIC's kernel and RDC's random features, in the basis of a column's ranks.

Covers: the number of functions, the Gaussian kernel and the features as coefficients, the
directions that span a column's features.
Does not cover: the measures of pairs (`dpipe.kernels.measures`), the basis
(`dpipe.kernels.basis`).
See also: docs/statistics.md, with every formula, source and accuracy.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dpipe.kernels.basis import legendre
from dpipe.kernels.draws import rdc_draws

BASIS = 12
"""Functions that a column's marginals know: with them HSIC is within 1e-6 of the dense estimate."""

PAIR_BASIS = 10
"""Those that HSIC and RDC multiply: still within 1e-6, at two thirds of the operations."""

DISTANCE_BASIS = 16
"""Functions of distance correlation, whose kernel has a kink: it is then within 1e-3 on ranks."""

HSIC_BANDWIDTH = 1 - 1 / np.sqrt(2)
"""Median distance of two uniform draws, the usual bandwidth of the Gaussian kernel."""

RDC_SCALE = 1 / 6
RDC_TOLERANCE = 1e-7
MOST_DIRECTIONS = 4
"""That a draw's features span on any column: a fifth would lie far below the tolerance."""


@lru_cache
def _quadrature() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes u (64,), weights (64,) on [0, 1] and the basis (K, 64) there."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    return (nodes + 1) / 2, weights / 2, legendre(nodes[None] / 2, BASIS)[0]


@lru_cache
def kernel_root() -> np.ndarray:
    """A (K, K) with A A' = T, the Gaussian kernel's coefficients in the basis."""
    u, weights, basis = _quadrature()
    kernel = np.exp(-((u[:, None] - u[None, :]) ** 2) / (2 * HSIC_BANDWIDTH**2))
    weighted = basis * weights
    values, vectors = np.linalg.eigh(weighted @ kernel @ weighted.T)
    return np.asarray(vectors * np.sqrt(np.clip(values, 0, None)))


@lru_cache
def kernel_of_first(functions: int) -> np.ndarray:
    """The Gaussian kernel's coefficients (d, d) for the first functions."""
    root = kernel_root()[:functions]
    return np.asarray(root @ root.T)


@lru_cache
def distances_of_first(functions: int) -> np.ndarray:
    """Those of -|u - u'|: twice the integral of the running integrals' products."""
    nodes, weights = np.polynomial.legendre.leggauss(2 * functions + 2)
    values = np.polynomial.legendre.legvander(nodes, functions + 1)
    order = np.arange(1, functions + 1)
    running = (values[:, 2:] - values[:, :-2]) / (2 * np.sqrt(2 * order + 1))
    return np.asarray((running * weights[:, None]).T @ running)


def self_hsic(root: np.ndarray) -> np.ndarray:
    """Square root of each column's HSIC with itself, from its root of the kernel (b, a, K)."""
    return np.asarray(np.sqrt(((root @ root.transpose(0, 2, 1)) ** 2).sum(axis=(1, 2))))


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


def feature_directions(
    loading: np.ndarray, seed: int, seeds: int, degree: int | None
) -> list[np.ndarray]:
    """Of each draw rows spanning the features on each column: `orthonormal_span` of `loading`."""
    most = degree or MOST_DIRECTIONS
    spans = feature_spans(seed, seeds, degree)
    return [orthonormal_span(loading[:, :BASIS], span, most) for span in spans]


def orthonormal_span(loading: np.ndarray, features: np.ndarray, most: int) -> np.ndarray:
    """Rows spanning each column's features in its whitened coordinates: (b, most, k), zero-padded.

    Gram-Schmidt with column pivoting on the features (b, k, m) themselves, stopping at the relative
    tolerance of R's `cancor`: which directions a column has depends on how its features scale, so
    the decision is taken there and not among already whitened directions.
    """
    residual = np.matmul(loading.transpose(0, 2, 1), features)  # (b, k, m)
    b, k, _ = residual.shape
    columns = np.arange(b)
    directions = np.zeros((b, most, k))
    largest = np.zeros(b)
    for step in range(min(k, most)):
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
            overlap = np.matmul(direction[:, None, :], residual)
            residual = residual - direction[:, :, None] * overlap
        residual[~lives] = 0
        directions[:, step] = direction
    return directions
