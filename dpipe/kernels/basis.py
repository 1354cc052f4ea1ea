"""Orthonormal shifted Legendre functions on the uniform scale.

Covers: psi_k(u) = sqrt(2k+1) P_k(2u - 1), k = 1..K, orthonormal on [0, 1] and orthogonal to 1, for
NumPy and CuPy arrays.
Does not cover: where the ranks u come from (`dpipe.kernels.ranks`) or what is done with the
functions (`dpipe.kernels.moments`).
"""

from __future__ import annotations

import math

from dpipe.backend import Array, namespace

# A group of columns is expanded while its functions still sit in a core's cache.
_CACHED_VALUES = 2**18


def legendre(scores: Array, functions: int) -> Array:
    """Evaluate the first `functions` basis functions.

    Parameters
    ----------
    scores
        (columns, rows) centred ranks u - 1/2 in (-1/2, 1/2), of a floating type.
    functions
        K, the number of functions, at least 1.

    Returns
    -------
    (columns, K, rows) in the type of `scores`.

    Notes
    -----
    The three-term recurrence of the normalised functions (Abramowitz & Stegun 1964, 22.7.10).

    Examples
    --------
    >>> import numpy as np
    >>> u = (np.arange(1000) + 0.5) / 1000
    >>> psi = legendre(u[None] - 0.5, 3)[0]
    >>> np.allclose(psi @ psi.T / 1000, np.eye(3), atol=1e-4)
    True
    """
    xp = namespace(scores)
    columns, rows = scores.shape
    values = xp.empty((columns, functions, rows), dtype=scores.dtype)
    group = max(1, _CACHED_VALUES // (functions * max(rows, 1)))
    for start in range(0, columns, group):
        part = slice(start, start + group)
        _recur(scores[part], values[part])
    return values


def _recur(scores: Array, values: Array) -> None:
    """Fill `values` (columns, K, rows) from `scores` (columns, rows)."""
    xp = namespace(scores)
    functions = values.shape[1]
    argument = scores * 2
    xp.multiply(argument, math.sqrt(3), out=values[:, 0])
    before: Array | float = 1.0
    for k in range(1, functions):
        ahead = math.sqrt((2 * k + 1) * (2 * k + 3)) / (k + 1)
        back = k / (k + 1) * math.sqrt((2 * k + 3) / (2 * k - 1))
        xp.multiply(argument, values[:, k - 1], out=values[:, k])
        values[:, k] *= ahead
        values[:, k] -= before * back
        before = values[:, k - 1]
