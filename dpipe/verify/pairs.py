"""Sums over rows for all pairs of columns, in blocks, so that only candidates are looked at singly.

Covers: products, counts and sums of functions of two blocks of columns on their common rows.
Does not cover: which functions, and what their covariances mean (see `dpipe.verify.dependence`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Piece = tuple[NDArray[Any], NDArray[np.bool_]]
    Read = Callable[[Sequence[str], slice], Piece]

_ROWS_AT_ONCE = 4096
_WIDTH = 1024  # functions of a block of columns


@dataclass(frozen=True)
class Sums:
    """Sums over jointly valid rows of the functions of two blocks of columns.

    ``product`` (b_i, K, b_j, K), ``count`` (b_i, b_j), ``sum_i`` (b_i, K, b_j), ``sum_j``
    (b_j, K, b_i); of the first function's square ``square_i`` (b_i, b_j), ``square_j`` (b_j, b_i).
    """

    product: NDArray[np.float64]
    count: NDArray[np.float64]
    sum_i: NDArray[np.float64]
    sum_j: NDArray[np.float64]
    square_i: NDArray[np.float64]
    square_j: NDArray[np.float64]

    def covariance(self) -> NDArray[np.float64]:
        """(b_i, b_j, K, K); meaningless where no row is common."""
        count = np.maximum(self.count, 1)
        mean_i = self.sum_i.transpose(0, 2, 1) / count[:, :, None]
        mean_j = self.sum_j.transpose(2, 0, 1) / count[:, :, None]
        centred: NDArray[np.float64] = self.product.transpose(0, 2, 1, 3) / count[..., None, None]
        centred -= mean_i[..., :, None] * mean_j[..., None, :]
        return centred

    def correlation(self) -> NDArray[np.float64]:
        """(b_i, b_j) correlation of the first functions; NaN where one does not vary."""
        count = np.maximum(self.count, 1)
        variance_i = self.square_i / count - (self.sum_i[:, 0] / count) ** 2
        variance_j = self.square_j.T / count - (self.sum_j[:, 0].T / count) ** 2
        varies = (variance_i > 0) & (variance_j > 0)
        scale = np.sqrt(np.where(varies, variance_i, 1)) * np.sqrt(np.where(varies, variance_j, 1))
        return np.where(varies, self.covariance()[:, :, 0, 0] / scale, np.nan)


def all_pairs(
    names: Sequence[str], n_rows: int, functions: int, read: Read
) -> Iterator[tuple[list[str], list[str], Sums]]:
    """Sums of every pair of blocks of columns, each pair of blocks once, a block with itself too.

    Parameters
    ----------
    names
        The columns.
    n_rows
        Rows to sum over.
    functions
        K, the functions of a column.
    read
        (columns, rows) -> functions (b, K, r), 0 where missing, and validity (b, r). Products are
        formed in the type of the functions and summed in float64.
    """
    width = max(1, _WIDTH // functions)
    blocks = [list(names[start : start + width]) for start in range(0, len(names), width)]
    for index, left in enumerate(blocks):
        for right in blocks[index:]:
            total: list[NDArray[np.float64]] | None = None
            for start in range(0, n_rows, _ROWS_AT_ONCE):
                rows = slice(start, min(start + _ROWS_AT_ONCE, n_rows))
                first = read(left, rows)
                more = _add(first, first if left is right else read(right, rows))
                total = more if total is None else [a + b for a, b in zip(total, more, strict=True)]
            if total is not None:
                yield left, right, Sums(*total)


def _add(left: Piece, right: Piece) -> list[NDArray[np.float64]]:
    """What some rows add to each field of `Sums`."""
    (f, v), (g, w) = ((values, valid.astype(values.dtype)) for values, valid in (left, right))
    (b_i, k, r), b_j = f.shape, g.shape[0]
    flat_f, flat_g = f.reshape(b_i * k, r), g.reshape(b_j * k, r)
    sums = [
        (flat_f @ flat_g.T).reshape(b_i, k, b_j, k),
        v @ w.T,
        (flat_f @ w.T).reshape(b_i, k, b_j),
        (flat_g @ v.T).reshape(b_j, k, b_i),
        f[:, 0] ** 2 @ w.T,
        g[:, 0] ** 2 @ v.T,
    ]
    return [array.astype(np.float64, copy=False) for array in sums]
