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

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from dpipe.device.arrays import Array, namespace, to_device, to_host
from dpipe.kernels.basis import legendre
from dpipe.kernels.marginals import Marginals
from dpipe.kernels.normal import normal_scores

# Rows and columns whitened at a time: their functions then stay in a core's own cache.
_CACHED_ROWS, _CACHED_COLUMNS = 2048, 4
# Of a symmetric product on a device; narrower ones would not fill it.
_STRIPS = 8
_NARROWEST_STRIP = 512


class Scratch:
    """Memory for one array that every chunk of a task fills anew.

    Pages a process has not touched before cost more than the arithmetic on them: without this, a
    quarter of the time of a tile goes to the kernel.
    """

    def __init__(self) -> None:
        self._memory: Array = None

    def empty(self, xp: Any, shape: tuple[int, ...], dtype: Any) -> Array:
        """A contiguous array of any content, valid until the next call."""
        size = math.prod(shape)
        if self._memory is None or self._memory.size < size or self._memory.dtype != dtype:
            self._memory = None
            self._memory = xp.empty(size, dtype=dtype)
        return self._memory[:size].reshape(shape)


@dataclass(frozen=True)
class Piece:
    """One column block on one row chunk.

    ``functions`` (b, k, r), zero where the column is missing; ``valid`` (b, r) of the same type
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
        (b_i, k_i, b_j, k_j) sum of the products of the functions of i and of j over jointly valid
        rows.
    count
        (b_i or 1, b_j or 1) jointly valid rows.
    sum_i, sum_j
        (b_i, k_i, b_j or 1) and (b_j, k_j, b_i or 1): sums of one column's functions over the rows
        where the other is valid.
    square_i, square_j
        (b_i, b_j or 1) and (b_j, b_i or 1): the same for the square of the function, of a block
        that has one for each column; else (1, 1), unused.
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
        """A copy in float64, ready to have others added."""
        arrays = (getattr(self, field.name) for field in fields(self))
        return Moments(*(array.astype("float64") for array in arrays))

    def copy(self) -> Moments:
        """Moments that can be added to without changing these (a task must not alter its input)."""
        return Moments(*(getattr(self, field.name).copy() for field in fields(self)))

    def to_host(self) -> Moments:
        """The same moments as NumPy arrays."""
        return Moments(*(to_host(getattr(self, field.name)) for field in fields(self)))

    def on_device(self, device: str) -> Moments:
        """The same moments where `device` computes; not copied if they are there already."""
        if device == "cpu" or not isinstance(self.product, np.ndarray):
            return self
        return Moments(*(to_device(getattr(self, field.name), device) for field in fields(self)))


@dataclass
class ListMoments(Moments):
    """Moments of single pairs, as a tile with one column that is another one in each row.

    Of P pairs ``product`` is (P, k_i, 1, k_j), ``count`` (P, 1), ``sum_i`` (P, k_i, 1) and
    ``sum_j`` (1, k_j, P), all over the rows that a pair shares; the marginals beside them are those
    of the P left and of the P right columns on these rows.
    """


def expand_ranks(scores: Array, valid: Array | None, scratch: Scratch | None = None) -> Piece:
    """The first function alone (K = 1), psi_1(u) = sqrt(12) (u - 1/2), in float64.

    Parameters
    ----------
    scores
        (b, r) centred ranks, 0 where missing (so is the function, at the centre).
    valid
        (b, r) bool, or None for a complete block.
    scratch
        Holds the functions; new memory when None.
    """
    xp = namespace(scores)
    functions = (scratch or Scratch()).empty(xp, scores.shape, xp.float64)
    xp.multiply(scores, 12**0.5, out=functions, dtype=xp.float64)
    mask = None if valid is None else valid.astype(xp.float64)
    return Piece(functions[:, None, :], mask)


_AT_ONCE = 2**17  # values whose normal scores are formed together, so that temporaries stay small


def expand_normal(scores: Array, valid: Array | None, scratch: Scratch | None = None) -> Piece:
    """The normal scores (K = 1), in float64; arguments are those of `expand_ranks`."""
    xp = namespace(scores)
    functions = (scratch or Scratch()).empty(xp, scores.shape, xp.float64)
    step = max(1, (_AT_ONCE if xp is np else 2**7 * _AT_ONCE) // max(scores.shape[1], 1))
    for start in range(0, len(scores), step):
        part = slice(start, start + step)
        functions[part] = normal_scores(scores[part])
    mask = None if valid is None else valid.astype(xp.float64)
    return Piece(functions[:, None, :], mask)


def expand_whitened(
    scores: Array,
    valid: Array | None,
    marginals: Marginals,
    dtype: str = "float32",
    scratch: Scratch | None = None,
) -> Piece:
    """The functions of each column, whitened unless the column is plain.

    What is whitened is evaluated in float64, a cache-sized piece at a time, and rounded once:
    whitening amplifies what float32 functions would have lost.

    Parameters
    ----------
    scores
        (b, r) centred ranks, 0 where missing.
    valid
        (b, r) bool, or None for a complete block.
    marginals
        The columns' change of basis, with arrays where `scores` lives but for ``plain``, which
        the host reads (`Marginals.on_device`).
    dtype
        Type of the functions: float32 for a Gram, float64 to settle a close pair.
    scratch
        Holds the functions; new memory when None.
    """
    xp = namespace(scores)
    b, rows = scores.shape
    k = marginals.whiten.shape[1]
    functions = (scratch or Scratch()).empty(xp, (b, k, rows), dtype)
    mask = None if valid is None else valid.astype(dtype)
    if xp is not np:
        _expand_on_device(scores, mask, marginals, functions)
        return Piece(functions, mask)
    for first, last in _runs(marginals.plain):
        part = slice(first, last)
        some_valid = None if mask is None else mask[part]
        if marginals.plain[first]:
            some = scores[part].astype(dtype, copy=False)
            legendre(some, k, some_valid, out=functions[part])
        else:
            change = marginals.whiten[part], marginals.mean[part]
            _whiten(scores[part], some_valid, *change, functions[part])
    return Piece(functions, mask)


def _expand_on_device(
    scores: Array, mask: Array | None, marginals: Marginals, functions: Array
) -> None:
    """Fill `functions`, whitening the columns that need it in as few kernels as possible.

    Stretches of columns would start some sixty kernels each, and a table of counts and continuous
    columns has hundreds of stretches.
    """
    xp = namespace(scores)
    kinds = [np.flatnonzero(marginals.plain), np.flatnonzero(~marginals.plain)]
    for plain, columns in zip((True, False), kinds, strict=True):
        if len(columns) == 0:
            continue
        everything = len(columns) == len(marginals.plain)
        part = slice(None) if everything else xp.asarray(columns)
        some, valid = scores[part], None if mask is None else mask[part]
        values = functions if everything else xp.empty_like(functions[: len(columns)])
        if plain:
            legendre(some.astype(values.dtype, copy=False), values.shape[1], valid, out=values)
        else:
            _whiten(some, valid, marginals.whiten[part], marginals.mean[part], values)
        if not everything:
            functions[part] = values


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of each stretch of equal flags."""
    cuts = [int(cut) + 1 for cut in np.flatnonzero(flags[1:] != flags[:-1])]
    return list(zip([0, *cuts], [*cuts, len(flags)], strict=True))


def _whiten(
    scores: Array, mask: Array | None, whiten: Array, mean: Array, functions: Array
) -> None:
    """Fill `functions` (b, k, r) with whitened functions, zero where missing."""
    xp = namespace(scores)
    b, rows = scores.shape
    offset = xp.matmul(whiten, mean[:, : whiten.shape[2], None])
    step, group = (_CACHED_ROWS, _CACHED_COLUMNS) if xp is np else (max(1, rows), max(1, b))
    for first in range(0, b, group):
        for start in range(0, rows, step):
            piece = slice(first, first + group), slice(start, start + step)
            part = piece[0]
            values = legendre(scores[piece].astype(xp.float64), whiten.shape[2])
            out = functions[part, :, piece[1]]
            xp.subtract(xp.matmul(whiten[part], values), offset[part], out=out, casting="same_kind")
            if mask is not None:
                out *= mask[part, None, piece[1]]


def tile_moments(left: Piece, right: Piece | None, scratch: Scratch | None = None) -> Moments:
    """Moments of two column blocks on one row chunk; `right` None means the diagonal tile.

    Products are formed, and handed back, in the type of the pieces; `Moments.total` starts the
    float64 sum over chunks. `scratch` holds the product. On the diagonal the product of a matrix
    with its own transpose lets BLAS use its symmetric kernel: half the work. cuBLAS is not asked
    for one by `matmul`; there the upper triangle is formed in strips.
    """
    other = left if right is None else right
    xp = namespace(left.functions)
    (b_i, k_i, rows), (b_j, k_j, _) = left.functions.shape, other.functions.shape
    flat_i = left.functions.reshape(b_i * k_i, rows)
    flat_j = other.functions.reshape(b_j * k_j, rows)
    product = (scratch or Scratch()).empty(xp, (b_i * k_i, b_j * k_j), flat_i.dtype)
    if right is None and xp is not np:
        _symmetric_product(flat_i, product)
    else:
        xp.matmul(flat_i, flat_j.T, out=product)
    product = product.reshape(b_i, k_i, b_j, k_j)
    sum_i, square_i = _seen_by(left, other)
    if right is None:
        sum_j, square_j = sum_i.copy(), square_i.copy()
    else:
        sum_j, square_j = _seen_by(right, left)
    return Moments(product, _joint_count(left, other), sum_i, sum_j, square_i, square_j)


def _symmetric_product(flat: Array, product: Array) -> None:
    """Fill `product` with flat flat', of which only the strips above the diagonal are computed.

    With 8 strips this is 9/16 of the work, in products that are still large.
    """
    xp = namespace(flat)
    size = len(flat)
    step = max(_NARROWEST_STRIP, -(-size // _STRIPS))
    for start in range(0, size, step):
        stop = min(start + step, size)
        product[start:stop, start:] = xp.matmul(flat[start:stop], flat[start:].T)
        product[stop:, start:stop] = product[start:stop, stop:].T


def _seen_by(mine: Piece, other: Piece) -> tuple[Array, Array]:
    """Sums and squares of `mine` over the rows where each column of `other` is valid."""
    xp = namespace(mine.functions)
    b, k, rows = mine.functions.shape
    flat = mine.functions.reshape(b * k, rows)
    unused = xp.zeros((1, 1))
    if other.valid is None:
        # Pairwise summation: as exact in float32 as the products beside it.
        sums = flat.sum(axis=-1).reshape(b, k, 1)
        return sums, xp.einsum("br,br->b", flat, flat)[:, None] if k == 1 else unused
    mask = other.valid.T
    sums = xp.matmul(flat, mask).reshape(b, k, -1)
    return sums, xp.matmul(flat * flat, mask) if k == 1 else unused


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


def in_quarters(
    quarter: Callable[[int, int], Moments], diagonal: bool, incomplete: tuple[bool, bool]
) -> Moments:
    """Moments of a tile put together from those of its quarters (host arrays).

    Parameters
    ----------
    quarter
        (a, b) -> moments of half `a` of the left block with half `b` of the right one.
    diagonal
        Whether both blocks are one: the lower left quarter is then the upper right one mirrored.
    incomplete
        Whether columns of the left and of the right block have masks.
    """
    upper = [quarter(0, 0), quarter(0, 1)]
    lower = [_mirrored(upper[1]) if diagonal else quarter(1, 0), quarter(1, 1)]
    rows = [_joined(pair, "j", incomplete[1]) for pair in (upper, lower)]
    return _joined(rows, "i", incomplete[0])


def _mirrored(moments: Moments) -> Moments:
    """The moments with the blocks' places exchanged."""
    return Moments(
        product=moments.product.transpose(2, 3, 0, 1),
        count=moments.count.T,
        sum_i=moments.sum_j,
        sum_j=moments.sum_i,
        square_i=moments.square_j,
        square_j=moments.square_i,
    )


def _joined(parts: Sequence[Moments], side: str, incomplete: bool) -> Moments:
    """Moments of the two halves of block `side` ("i" or "j") as moments of the block."""
    other = "j" if side == "i" else "i"
    axes = {"product": 0 if side == "i" else 2, f"sum_{side}": 0, f"square_{side}": 0}
    if incomplete:  # else these axes have length 1 and say the same of every column
        axes |= {"count": 0 if side == "i" else 1, f"sum_{other}": 2, f"square_{other}": 1}
    for name, k in zip(("square_i", "square_j"), parts[0].product.shape[1::2], strict=True):
        if k > 1:  # then the squares are unused
            axes.pop(name, None)

    def join(name: str) -> np.ndarray:
        arrays = [getattr(part, name) for part in parts]
        return np.concatenate(arrays, axes[name]) if name in axes else np.asarray(arrays[0])

    return Moments(*(join(field.name) for field in fields(Moments)))
