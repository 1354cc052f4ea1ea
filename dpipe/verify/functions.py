"""Functions of one column that the measures look at, in plain NumPy, a piece of the rows at a time.

Covers: the Legendre functions, the random features of RDC, orthonormal combinations of either.
Does not cover: what two columns have in common (`dpipe.verify.dependence`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FUNCTIONS = 12
RDC_SCALE = 1 / 6
RDC_TOLERANCE = 1e-7
CONSTANT = 1e-12
"""Own HSIC, or variance, of a column that does not vary, but for rounding."""
SMALLEST_VARIANCE = 1e-11
"""Of the largest variance of a column's functions; directions that vary less are left out."""
ROWS_AT_ONCE = 2**15


def pieces(n_rows: int) -> Iterator[slice]:
    """Pieces of the rows; of none, one that is empty."""
    for start in range(0, max(1, n_rows), ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, n_rows))


def psi(argument: Floats, functions: int = FUNCTIONS) -> Floats:
    """Orthonormal Legendre functions from 1 on at 2 u - 1 (n,): (functions, n)."""
    values = np.empty((functions, *argument.shape))
    values[0] = argument
    for k in range(1, functions):  # (k + 1) P_(k+1) = (2 k + 1) x P_k - k P_(k-1)
        np.multiply(argument, values[k - 1], out=values[k])
        values[k] *= (2 * k + 1) / (k + 1)
        values[k] -= k / (k + 1) * (values[k - 2] if k > 1 else 1)
    values *= np.sqrt(2 * np.arange(1, functions + 1) + 1)[:, None]
    return values


def waves(w: Floats, b: Floats, argument: Floats) -> Floats:
    """The random features of one draw at 2 u - 1 (n,): (20, n)."""
    u = (argument + 1) / 2
    return np.asarray(np.sin(RDC_SCALE / 2 * (np.outer(w, u) + b[:, None])))


def none(argument: Floats) -> Floats:
    """No function (0, n), of a column that does not vary."""
    return np.empty((0, len(argument)))


def turned_by(
    root: Floats,
    functions: Callable[[Floats], Floats],
    argument: Floats,
    centre: float | Floats = 0,
) -> Floats:
    """Combinations of functions (m, n), each less its centre."""
    return np.asarray(root @ (functions(argument) - centre))


def triangle_of(
    features: Callable[[Floats], Floats], argument: Floats
) -> tuple[Floats, Floats, float]:
    """Means of features (d,) on some rows; what has their lengths and angles; the largest value.

    The lengths are those of a row on average.
    """
    triangle: Floats | None = None
    largest = 0.0
    for rows in pieces(len(argument)):
        values = features(argument[rows])
        largest = max(largest, float(np.abs(values).max()))
        more = np.vstack([np.ones(values.shape[1]), values]).T
        stacked = more if triangle is None else np.concatenate([triangle, more])
        triangle = np.asarray(np.linalg.qr(stacked, mode="r"))
    assert triangle is not None, "there are rows"
    return triangle[0, 1:] / triangle[0, 0], triangle[1:, 1:] / math.sqrt(len(argument)), largest


def orthonormal(
    features: Callable[[Floats], Floats], argument: Floats
) -> Callable[[Floats], Floats]:
    """Centred functions (d, n) of unit variance on `argument`, with the span of `features` there.

    Orthogonalisation with pivoting, stopped at the relative tolerance of R's ``cancor``; none for
    a constant. It works on the triangle of a QR factorisation, piece by piece, which has the
    lengths and angles of the features themselves; the column of ones takes their means.
    """
    n = len(argument)
    if n == 0:
        return none
    means, triangle, largest = triangle_of(features, argument)
    # A constant's features differ from their mean by rounding alone.
    vectors, rounding = triangle.T, 1e-13 * largest
    recipe = pivoted(vectors[None], np.eye(len(vectors)), np.array([rounding]))[0]
    if not len(recipe):
        return none
    return partial(turned_by, recipe, features, centre=means[:, None])


def polynomials(degree: int, functions: int, argument: Floats) -> Callable[[Floats], Floats]:
    """Centred functions (d, n) of unit variance with the span of psi_1 to psi_degree.

    Of these counts what lies in the directions in which psi_1 to psi_functions vary.
    """
    if not len(argument):
        return none
    basis = partial(psi, functions=functions)
    means, triangle, _ = triangle_of(basis, argument)
    _, sizes, turned = np.linalg.svd(triangle, full_matrices=False)
    variances = sizes**2
    varies = variances > np.maximum(SMALLEST_VARIANCE * variances.max(initial=0), CONSTANT)
    if not varies.any():
        return none
    turned, sizes = turned[varies], sizes[varies, None]
    vectors = (turned * sizes)[:, :degree].T
    directions = pivoted(vectors[None], vectors, np.zeros(1))[0]
    return partial(turned_by, directions @ (turned / sizes), basis, centre=means[:, None])


def pivoted(vectors: Floats, made: Floats, smallest: Floats) -> Floats:
    """Orthonormal combinations of the vectors of several sets, the largest one left first.

    Parameters
    ----------
    vectors
        (b, m, k) m vectors of each set.
    made
        (b, m, q) or (m, q) what each vector is made of.
    smallest
        (b,) length from which on a vector is more than rounding.

    Returns
    -------
    array
        (b, d, q) what the combinations are made of, 0 where a set has fewer than others.
    """
    residual, made = vectors.copy(), np.broadcast_to(made, (*vectors.shape[:2], made.shape[-1]))
    made = made.copy()
    sets = np.arange(len(residual))
    directions, recipes = np.empty((len(sets), 0, residual.shape[2])), made[:, :0]
    while directions.shape[1] < min(residual.shape[1:]):
        norms = np.sqrt(np.einsum("bmk,bmk->bm", residual, residual))
        pivot = norms.argmax(axis=1)
        norm = norms[sets, pivot]
        lives = norm > smallest
        if not lives.any():
            break
        if not directions.shape[1]:
            smallest = np.maximum(smallest, RDC_TOLERANCE * norm)
        scale = np.where(lives, norm, np.inf)[:, None, None]
        direction, recipe = (each[sets, pivot][:, None] / scale for each in (residual, made))
        shared = direction @ directions.transpose(0, 2, 1)
        direction, recipe = direction - shared @ directions, recipe - shared @ recipes
        length = np.linalg.norm(direction, axis=2, keepdims=True)
        length[~lives] = 1
        direction, recipe = direction / length, recipe / length
        shares = residual @ direction.transpose(0, 2, 1)
        residual -= shares * direction
        made -= shares * recipe
        directions = np.concatenate([directions, direction], axis=1)
        recipes = np.concatenate([recipes, recipe], axis=1)
    return recipes
