"""The largest singular value of each of many small matrices, as RDC needs it of every pair.

Covers: Jacobi's method on all matrices at once, for NumPy and CuPy arrays; on the host in C where
that is compiled.
Does not cover: where the matrices come from (`dpipe.kernels.measures`).
Source: Golub & Van Loan 2013, 8.5 (the cyclic Jacobi method).

LAPACK takes a call and its bookkeeping for each matrix, ten times as long as the arithmetic of a
matrix of three or four rows.
"""

from __future__ import annotations

import itertools

import numpy as np

from dpipe.device.arrays import Array, namespace
from dpipe.kernels.compiled import load

compiled = load("_spectrum")

_MOST_COMPILED = 12  # rows
_TYPES = (np.float32, np.float64)

# What lies off the diagonal counts while it exceeds this share of the trace. A matrix that is done
# passes further sweeps unchanged, so that its digits do not depend on those beside it. Four to
# eight sweeps are usual; singular values that are nearly equal take as many again.
_NEGLIGIBLE = 1e-16
_MOST_SWEEPS = 50


def largest_square(matrices: Array) -> Array:
    """The largest squared singular value of each matrix (..., d, e), float64.

    Examples
    --------
    >>> largest_square(np.array([[[0.6, 0.0], [0.0, 0.8]]])).round(12).tolist()
    [0.64]
    """
    xp = namespace(matrices)
    if matrices.shape[-2] > matrices.shape[-1]:
        matrices = xp.swapaxes(matrices, -1, -2)
    *shape, d, e = matrices.shape
    if compiled is not None and xp is np and d <= _MOST_COMPILED and matrices.dtype in _TYPES:
        values = np.empty(shape)
        flat = np.ascontiguousarray(matrices).reshape(-1, d, e)
        compiled.largest_squares(flat, values.reshape(-1))
        return values
    return _by_jacobi(matrices.astype("float64"))


def _by_jacobi(matrices: Array) -> Array:
    xp = namespace(matrices)
    d = matrices.shape[-2]
    a = [[_dot(matrices[..., p, :], matrices[..., q, :]) for q in range(d)] for p in range(d)]
    negligible = _NEGLIGIBLE * sum(a[k][k] for k in range(d))
    for _ in range(_MOST_SWEEPS):
        moved = xp.zeros_like(negligible)
        for p, q in itertools.combinations(range(d), 2):
            moved += _rotate(a, p, q, negligible)
        if not moved.any():
            break
    return xp.stack([a[k][k] for k in range(d)]).max(axis=0)


def _rotate(a: list[list[Array]], p: int, q: int, negligible: Array) -> Array:
    """Turns each matrix so that a[p][q] becomes 0; returns what stood there, 0 if negligible."""
    xp = namespace(negligible)
    off, apart = xp.where(abs(a[p][q]) > negligible, a[p][q], 0), a[q][q] - a[p][p]
    wide = apart + xp.copysign(xp.sqrt(apart * apart + 4 * off * off), apart)
    tangent = 2 * off / xp.where(wide != 0, wide, 1)
    cosine = 1 / xp.sqrt(tangent * tangent + 1)
    sine = tangent * cosine
    a[p][p], a[q][q] = a[p][p] - tangent * off, a[q][q] + tangent * off
    a[p][q] = a[q][p] = xp.zeros_like(off)
    for r in set(range(len(a))) - {p, q}:
        x, y = a[r][p], a[r][q]
        a[p][r] = a[r][p] = cosine * x - sine * y
        a[q][r] = a[r][q] = sine * x + cosine * y
    return abs(off)


def _dot(first: Array, second: Array) -> Array:
    """Sums of products along the last axis, added up one after the other."""
    total = first[..., 0] * second[..., 0]
    for k in range(1, first.shape[-1]):
        total = total + first[..., k] * second[..., k]
    return total
