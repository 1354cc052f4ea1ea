"""Orthonormal shifted Legendre functions on the uniform scale.

Covers: psi_k(u) = sqrt(2k+1) P_k(2u - 1), k = 1..K, orthonormal on [0, 1] and orthogonal to 1, for
NumPy and CuPy arrays; on the host in C where that is compiled.
Does not cover: where the ranks u come from (`dpipe.kernels.ranks`) or what is done with the
functions (`dpipe.kernels.moments`).
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import Any

import numpy as np

from dpipe.device.arrays import Array, namespace
from dpipe.kernels.compiled import load

compiled = load("_basis")

# A group of columns is expanded while its functions still sit in a core's cache. A device has no
# use for that: there every group costs the start of some sixty kernels.
_CACHED_VALUES = 2**18
_SUMMED_AT_ONCE = 16  # a sum holds four arrays of float64; this many leave the cache some room


def legendre(
    scores: Array, functions: int, valid: Array | None = None, out: Array | None = None
) -> Array:
    """Evaluate the first `functions` basis functions.

    Parameters
    ----------
    scores
        (columns, rows) centred ranks u - 1/2 in (-1/2, 1/2), of a floating type.
    functions
        K, the number of functions, at least 1.
    valid
        (columns, rows) 1 or 0 in the type of `scores`: the functions are 0 where it is. Scores
        must then be 0 there too.
    out
        (columns, K, rows) array to fill, contiguous along the rows; a new one when None.

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
    values = xp.empty((columns, functions, rows), dtype=scores.dtype) if out is None else out
    if compiled is not None and _is_compiled(values):
        mask = None if valid is None else np.ascontiguousarray(valid)
        compiled.expand(np.ascontiguousarray(scores), mask, values, _steps(functions))
        return values
    group = _group(xp, columns, functions * rows)
    for start in range(0, columns, group):
        part = slice(start, start + group)
        _recur(scores[part], 1.0 if valid is None else valid[part], values[part])
    return values


def _is_compiled(values: Array) -> bool:
    return (
        compiled is not None
        and namespace(values) is np
        and values.dtype in (np.float32, np.float64)
    )


def _group(xp: Any, columns: int, values_of_one: int) -> int:
    """Columns to work on at a time."""
    if xp is not np:
        return max(1, columns)
    return max(1, _CACHED_VALUES // max(1, values_of_one))


def _recur(scores: Array, first: Array | float, values: Array) -> None:
    """Fill `values` (columns, K, rows) from `scores` (columns, rows); psi_0 is `first`."""
    xp = namespace(scores)
    argument = scores * 2
    step = _step_on_device(xp) if xp is not np else partial(_step, np.empty_like(argument))
    xp.multiply(argument, math.sqrt(3), out=values[:, 0])
    before = first
    for k in range(1, values.shape[1]):
        step(argument, values[:, k - 1], before, *recurrence(k), values[:, k])
        before = values[:, k - 1]


def _step(
    scratch: np.ndarray,
    argument: np.ndarray,
    last: np.ndarray,
    before: np.ndarray | float,
    ahead: float,
    back: float,
    now: np.ndarray,
) -> None:
    """Fill `now` with the next function of the recurrence."""
    np.multiply(argument, last, out=now)
    now *= ahead
    np.multiply(before, back, out=scratch)
    now -= scratch


@lru_cache
def _step_on_device(xp: Any) -> Any:
    """The same as one kernel: four would pass over the memory of the device four times."""
    return xp.ElementwiseKernel(
        "T x, T last, T before, T ahead, T back",
        "T now",
        "now = ahead * (x * last) - back * before",
        "dpipe_recurrence",
    )


def recurrence(k: int) -> tuple[float, float]:
    """(a, b) of psi_{k+1}(u) = a (2u - 1) psi_k(u) - b psi_{k-1}(u).

    Examples
    --------
    >>> a, b = recurrence(0)
    >>> a == 3**0.5, b
    (True, 0.0)
    """
    ahead = math.sqrt((2 * k + 1) * (2 * k + 3)) / (k + 1)
    back = k / (k + 1) * math.sqrt((2 * k + 3) / (2 * k - 1)) if k else 0.0
    return ahead, back


@lru_cache
def _steps(functions: int) -> np.ndarray:
    """Both factors of each step to as many functions, one after the other."""
    return np.array([factor for k in range(1, functions) for factor in recurrence(k)])


def legendre_sums(scores: Array, degree: int, valid: Array | None = None) -> Array:
    """Sums of psi_1 to psi_degree over the rows, (columns, degree), without keeping the functions.

    Parameters
    ----------
    scores, valid
        As for `legendre`.
    degree
        Highest function.

    Examples
    --------
    >>> import numpy as np
    >>> u = (np.arange(1000) + 0.5) / 1000
    >>> bool(np.allclose(legendre_sums(u[None] - 0.5, 4) / 1000, 0, atol=1e-4))
    True
    """
    xp = namespace(scores)
    columns, rows = scores.shape
    sums = xp.empty((columns, degree), dtype=scores.dtype)
    if _is_compiled(scores) and degree * rows <= _CACHED_VALUES:
        group = _group(xp, columns, degree * rows)
        room = np.empty((group, degree, rows), dtype=scores.dtype)
        for start in range(0, columns, group):
            part = slice(start, start + group)
            mask = None if valid is None else valid[part]
            some = scores[part]
            legendre(some, degree, mask, room[: len(some)]).sum(axis=-1, out=sums[part])
        return sums
    group = _group(xp, columns, _SUMMED_AT_ONCE * rows)
    for start in range(0, columns, group):
        part = slice(start, start + group)
        argument = scores[part] * 2
        before = xp.ones_like(argument) if valid is None else valid[part].copy()
        now = argument * math.sqrt(3)
        ahead = xp.empty_like(argument)
        for k in range(1, degree + 1):
            sums[part, k - 1] = now.sum(axis=-1)
            step, back = recurrence(k)
            xp.multiply(argument, now, out=ahead)
            ahead *= step
            before *= back
            ahead -= before
            before, now, ahead = now, ahead, before
    return sums
