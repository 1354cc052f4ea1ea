"""Cross-moments of two column blocks: what a tile accumulates over row chunks.

Covers: the product of the functions of every pair of columns and the counts, sums and squares that
pairs with missing cells need; adding moments.
Does not cover: how moments become similarities (`dpipe.kernels.measures`), reading or scheduling.

A pair with a missing cell is measured on the rows where both columns are valid. An array over pairs
therefore has the full shape (b_i, b_j) only where the *other* block is incomplete; for a complete
block it is a constant of the column and keeps an axis of length 1 that broadcasts. Complete blocks
thus never pay for masks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from dpipe.backend import Array, namespace, to_host
from dpipe.kernels.basis import legendre
from dpipe.kernels.own import Own

# Rows whitened at a time: the functions of a column group then stay in a core's own cache.
_CACHED_ROWS = 2048


@dataclass(frozen=True)
class Piece:
    """One column block on one row chunk.

    ``functions`` (b, K, r), zero where the column is missing; ``valid`` (b, r) of the same type
    holds 1 or 0, or is None when every cell of the block is valid.
    """

    functions: Array
    valid: Array | None

    @property
    def n_rows(self) -> int:
        """Rows of the chunk, missing or not."""
        return int(self.functions.shape[-1])


@dataclass
class Moments:
    """Sums over rows for every pair (i, j) of two column blocks.

    Attributes
    ----------
    product
        (b_i, K, b_j, K) sum of phi_k(i) phi_l(j) over jointly valid rows.
    count
        (b_i or 1, b_j or 1) jointly valid rows.
    sum_i, sum_j
        (b_i, K, b_j or 1) and (b_j, K, b_i or 1): sums of one column's functions over the rows
        where the other is valid.
    square_i, square_j
        (b_i, b_j or 1) and (b_j, b_i or 1): the same for the square of the first function.
    """

    product: Array
    count: Array
    sum_i: Array
    sum_j: Array
    square_i: Array
    square_j: Array

    def __iadd__(self, other: Moments) -> Moments:
        for field in fields(self):
            mine = getattr(self, field.name)
            mine += getattr(other, field.name)
        return self

    def total(self) -> Moments:
        """The same moments in float64, ready to have others added."""
        arrays = (getattr(self, field.name) for field in fields(self))
        return Moments(*(array.astype("float64", copy=False) for array in arrays))

    def copy(self) -> Moments:
        """Moments that can be added to without changing these (a task must not alter its input)."""
        return Moments(*(getattr(self, field.name).copy() for field in fields(self)))

    def to_host(self) -> Moments:
        """The same moments as NumPy arrays."""
        return Moments(*(to_host(getattr(self, field.name)) for field in fields(self)))


def expand_ranks(scores: Array, valid: Array | None) -> Piece:
    """The first function alone (K = 1), psi_1(u) = sqrt(12) (u - 1/2), in float64.

    Parameters
    ----------
    scores
        (b, r) centred ranks, 0 where missing (so is the function, at the centre).
    valid
        (b, r) bool, or None for a complete block.
    """
    xp = namespace(scores)
    functions = xp.multiply(scores, 12**0.5, dtype=xp.float64)[:, None, :]
    return Piece(functions, None if valid is None else valid.astype(xp.float64))


def expand_whitened(scores: Array, valid: Array | None, own: Own, dtype: str = "float32") -> Piece:
    """The K whitened functions of each column.

    Evaluated and whitened in float64, a cache-sized strip at a time, and rounded once: whitening
    amplifies what float32 functions would have lost.

    Parameters
    ----------
    scores
        (b, r) centred ranks, 0 where missing.
    valid
        (b, r) bool, or None for a complete block.
    own
        The columns' change of basis, with arrays where `scores` lives.
    dtype
        Type of the functions: float32 for a Gram, float64 to settle a close pair.
    """
    xp = namespace(scores)
    b, rows = scores.shape
    k = own.mean.shape[1]
    functions = xp.empty((b, k, rows), dtype=dtype)
    offset = xp.matmul(own.whiten, own.mean[:, :, None])
    for start in range(0, rows, _CACHED_ROWS):
        strip = slice(start, start + _CACHED_ROWS)
        values = legendre(scores[:, strip].astype(xp.float64), k)
        functions[:, :, strip] = xp.matmul(own.whiten, values) - offset
    if valid is None:
        return Piece(functions, None)
    mask = valid.astype(dtype)
    functions *= mask[:, None, :]
    return Piece(functions, mask)


def tile_moments(left: Piece, right: Piece | None) -> Moments:
    """Moments of two column blocks on one row chunk; `right` None means the diagonal tile.

    Products are formed, and handed back, in the type of the pieces; `Moments.total` starts the
    float64 sum over chunks. On the diagonal the product of a matrix with its own transpose lets
    BLAS use its symmetric kernel: half the work.
    """
    other = left if right is None else right
    xp = namespace(left.functions)
    b_i, k, rows = left.functions.shape
    b_j = other.functions.shape[0]
    flat_i = left.functions.reshape(b_i * k, rows)
    flat_j = other.functions.reshape(b_j * k, rows)
    product = xp.matmul(flat_i, flat_j.T).reshape(b_i, k, b_j, k)
    sum_i, square_i = _seen_by(left, other)
    if right is None:
        sum_j, square_j = sum_i.copy(), square_i.copy()
    else:
        sum_j, square_j = _seen_by(right, left)
    return Moments(product, _joint_count(left, other), sum_i, sum_j, square_i, square_j)


def _seen_by(mine: Piece, other: Piece) -> tuple[Array, Array]:
    """Sums and squares of `mine` over the rows where each column of `other` is valid."""
    xp = namespace(mine.functions)
    b, k, rows = mine.functions.shape
    squares = mine.functions[:, 0] ** 2
    if other.valid is None:
        sums = mine.functions.sum(axis=-1, dtype=xp.float64)[:, :, None]
        return sums, squares.sum(axis=-1, dtype=xp.float64)[:, None]
    mask = other.valid.T
    sums = xp.matmul(mine.functions.reshape(b * k, rows), mask).reshape(b, k, -1)
    return sums, xp.matmul(squares, mask)


def _joint_count(left: Piece, right: Piece) -> Array:
    """Jointly valid rows, as narrow as the masks allow."""
    xp = namespace(left.functions)
    if left.valid is not None and right.valid is not None:
        return xp.matmul(left.valid, right.valid.T)
    if left.valid is not None:
        return left.valid.sum(axis=-1, dtype=xp.float64)[:, None]
    if right.valid is not None:
        return right.valid.sum(axis=-1, dtype=xp.float64)[None, :]
    return xp.full((1, 1), left.n_rows, dtype=xp.float64)
