"""Slow, plain definitions of the statistics, independent of the package.

Covers: average ranks, Spearman, dense HSIC, distance correlation, the published RDC recipe.
Source of each formula: docs/statistics.md.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.stats
from numpy.typing import NDArray

Array = NDArray[np.float64]


def uniform_ranks(values: Array) -> Array:
    """(r - 1/2) / n of one column without missing cells."""
    return (scipy.stats.rankdata(values) - 0.5) / len(values)


def dense_nhsic(x: Array, y: Array) -> float:
    """Normalised biased HSIC of two complete columns with n x n Gaussian kernels on their ranks."""
    bandwidth = 1 - 1 / np.sqrt(2)

    def centred_kernel(values: Array) -> Array:
        u = uniform_ranks(values)
        kernel = np.exp(-((u[:, None] - u[None, :]) ** 2) / (2 * bandwidth**2))
        kernel = kernel - kernel.mean(axis=0)
        return np.asarray(kernel - kernel.mean(axis=1)[:, None])

    a, b = centred_kernel(x), centred_kernel(y)
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def distance_correlation(x: Array, y: Array) -> float:
    """Of the ranks of two complete columns, from n x n double-centred distances."""

    def centred_distances(values: Array) -> Array:
        u = uniform_ranks(values)
        distances = np.abs(u[:, None] - u[None, :])
        distances = distances - distances.mean(axis=0)
        return np.asarray(distances - distances.mean(axis=1)[:, None])

    a, b = centred_distances(x), centred_distances(y)
    return float(np.sqrt((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())))


def published_rdc(x: Array, y: Array, weights: Array, offsets: Array) -> float:
    """Largest canonical correlation of random sine features of the ranks, one draw (w, b)."""

    def span(values: Array) -> Array:
        features = np.sin((np.outer(uniform_ranks(values), weights) + offsets) / 12)
        features -= features.mean(axis=0)
        q, r, _ = scipy.linalg.qr(features, mode="economic", pivoting=True)
        scale = np.abs(np.diag(r))
        return np.asarray(q[:, scale > 1e-7 * scale[0]])

    return float(np.linalg.svd(span(x).T @ span(y), compute_uv=False)[0])
