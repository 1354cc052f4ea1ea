"""Sums over rows for all pairs of columns, in blocks, so that only candidates are looked at singly.

Covers: products, counts and sums of functions of two blocks of columns on their common rows.
Does not cover: which functions, and what their covariances mean (see `dpipe.verify.screen`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dpipe.verify.columns import RankedColumns
from dpipe.verify.crew import Crew

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Piece = tuple[NDArray[np.float64], NDArray[np.bool_]]
    Read = Callable[[RankedColumns, Sequence[str], slice], Piece]

_ROWS_AT_ONCE = 4096
_ROWS_OF_A_TASK = 2**19
_WIDTH = 1024  # functions of a block of columns


@dataclass(frozen=True)
class Sums:
    """Sums over jointly valid rows of the functions of two blocks of columns.

    ``product`` (b_i, K, b_j, K), ``count`` (b_i, b_j), ``sum_i`` (b_i, K, b_j), ``sum_j``
    (b_j, K, b_i); of the first function's square ``square_i`` (b_i, b_j), ``square_j`` (b_j, b_i).
    Of a block with itself also the products of each column alone, ``own`` (b, K, K), and the sums
    of its functions ``own_sum`` (b, K), in float64 throughout.
    """

    product: NDArray[np.float64]
    count: NDArray[np.float64]
    sum_i: NDArray[np.float64]
    sum_j: NDArray[np.float64]
    square_i: NDArray[np.float64]
    square_j: NDArray[np.float64]
    own: NDArray[np.float64] | None = None
    own_sum: NDArray[np.float64] | None = None

    def covariance(self) -> NDArray[np.float64]:
        """(b_i, b_j, K, K); meaningless where no row is common."""
        count = np.maximum(self.count, 1)
        mean_i = self.sum_i.transpose(0, 2, 1) / count[:, :, None]
        mean_j = self.sum_j.transpose(2, 0, 1) / count[:, :, None]
        centred: NDArray[np.float64] = self.product.transpose(0, 2, 1, 3) / count[..., None, None]
        centred -= mean_i[..., :, None] * mean_j[..., None, :]
        return centred

    def own_moments(self) -> list[Own]:
        """Of each column of a block, over all its rows."""
        assert self.own is not None, "only a block with itself has them"
        assert self.own_sum is not None
        rows = np.diagonal(self.count)
        count = np.maximum(rows, 1)
        mean = self.own_sum / count[:, None]
        centred: NDArray[np.float64] = self.own / count[:, None, None]
        centred -= mean[:, :, None] * mean[:, None, :]
        return [Own(*each) for each in zip(rows.tolist(), mean, centred, strict=True)]

    def on_common_rows(
        self, left: Sequence[Own], right: Sequence[Own]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How the columns of each pair lie on the rows they share, compared with their own rows.

        (b_i, b_j) the variances of their first functions there, in units of their own, multiplied;
        how far the means of the first two moved, in their standard deviations, added up.
        """
        spread_i, shift_i = _lies(self.sum_i, self.square_i, self.count, left)
        spread_j, shift_j = _lies(self.sum_j, self.square_j, self.count.T, right)
        return spread_i * spread_j.T, shift_i + shift_j.T

    def correlation(self) -> NDArray[np.float64]:
        """(b_i, b_j) correlation of the first functions; NaN where one does not vary."""
        count = np.maximum(self.count, 1)
        variance_i = self.square_i / count - (self.sum_i[:, 0] / count) ** 2
        variance_j = self.square_j.T / count - (self.sum_j[:, 0].T / count) ** 2
        varies = (variance_i > 0) & (variance_j > 0)
        scale = np.sqrt(np.where(varies, variance_i, 1)) * np.sqrt(np.where(varies, variance_j, 1))
        return np.where(varies, self.covariance()[:, :, 0, 0] / scale, np.nan)


@dataclass(frozen=True)
class Own:
    """A column over all its rows: how many, mean (K,) and covariance (K, K) of its functions."""

    rows: float
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @property
    def norm(self) -> float:
        """Of the covariance."""
        return float(np.linalg.norm(self.covariance))


def _lies(
    sums: NDArray[np.float64],
    squares: NDArray[np.float64],
    count: NDArray[np.float64],
    own: Sequence[Own],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each column, (b, others): variance in units of its own, and shift; 1 and 0 on all rows."""
    n = np.maximum(count, 1)
    mean = sums[:, :2] / n[:, None, :]
    known = np.stack([each.mean[:2] for each in own])
    variances = np.stack([np.diagonal(each.covariance)[:2] for each in own])
    unit = np.where(variances > 0, variances, np.inf)
    spread = (squares / n - mean[:, 0] ** 2) / unit[:, :1]
    shift = np.sqrt(((mean - known[..., None]) ** 2 / unit[..., None]).sum(axis=1))
    loses = count < np.array([each.rows for each in own])[:, None]
    return np.where(loses, spread, 1), np.where(loses, shift, 0)


def all_pairs(
    columns: RankedColumns, names: Sequence[str], functions: int, read: Read, crew: Crew
) -> Iterator[tuple[list[str], list[str], Sums]]:
    """Sums of every pair of blocks of columns, each pair of blocks once.

    A block with itself comes first, and those before any two different ones.

    Parameters
    ----------
    columns
        The ranked input.
    names
        The columns to look at.
    functions
        K, the functions of a column.
    read
        (input, names, rows) -> functions (b, K, r), 0 where missing, and validity (b, r). The
        products of more than one function are formed in float32; all are summed in float64.
    crew
        Who does it.
    """
    width = max(1, _WIDTH // functions)
    blocks = [list(names[start : start + width]) for start in range(0, len(names), width)]
    pairs = [(block, block) for block in blocks]
    pairs += [(left, right) for k, left in enumerate(blocks) for right in blocks[k + 1 :]]
    starts = range(0, columns.n_rows, _ROWS_OF_A_TASK)
    tasks = (
        (columns.part([*left, *right]), left, right, slice(start, start + _ROWS_OF_A_TASK), read)
        for left, right in pairs
        for start in starts
    )
    parts = crew.each(_sum_of_rows, tasks)
    for left, right in pairs:
        total: list[NDArray[np.float64]] | None = None
        for _ in starts:
            total = _added(total, next(parts))
        if total is not None:
            yield left, right, Sums(*total)


def _sum_of_rows(
    columns: RankedColumns, left: Sequence[str], right: Sequence[str], rows: slice, read: Read
) -> list[NDArray[np.float64]]:
    """The fields of `Sums` over some rows."""
    total: list[NDArray[np.float64]] | None = None
    stop = min(rows.stop, columns.n_rows)
    for start in range(rows.start, stop, _ROWS_AT_ONCE):
        some = slice(start, min(start + _ROWS_AT_ONCE, stop))
        first = read(columns, left, some)
        more = _own(first) if left == right else []
        second = first if left == right else read(columns, right, some)
        total = _added(total, [*_products(first, second), *more])
    assert total is not None, "a task has rows"
    return total


def _added(
    total: list[NDArray[np.float64]] | None, more: list[NDArray[np.float64]]
) -> list[NDArray[np.float64]]:
    if total is None:
        return more
    for there, new in zip(total, more, strict=True):
        there += new
    return total


def _products(left: Piece, right: Piece) -> list[NDArray[np.float64]]:
    """What some rows add to the sums of two blocks."""
    (f, v), (g, w) = (
        (_narrow(*left), _narrow(*right)) if left is not right else (_narrow(*left),) * 2
    )
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


def _narrow(values: NDArray[np.float64], valid: NDArray[np.bool_]) -> tuple[NDArray, NDArray]:  # type: ignore[type-arg]
    """Functions and validity in the type of their products."""
    dtype = np.float64 if values.shape[1] == 1 else np.float32
    return values.astype(dtype, copy=False), valid.astype(dtype)


def _own(piece: Piece) -> list[NDArray[np.float64]]:
    """What some rows add to the sums of each column alone."""
    values, _ = piece
    return [np.matmul(values, values.transpose(0, 2, 1)), values.sum(axis=2)]
