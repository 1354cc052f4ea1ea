"""The input as the check sees it: every feature column ranked anew.

Covers: reading the columns, their average ranks by sorting, and the facts pass 1 decides on.
Does not cover: comparing columns (see `dpipe.verify.dependence`).

Nothing here comes from `dpipe.kernels` or the rank store: the check would be worth little if it
repeated their mistakes.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpipe.table import Block, Table, read_block

if TYPE_CHECKING:
    from numpy.typing import NDArray

MISSING = np.int32(np.iinfo(np.int32).min)
"""What stands in `RankedColumns.ranks` for a missing cell."""

_CELLS_AT_ONCE = 2**24
_CELLS_IN_MEMORY = 2**29


@dataclass(frozen=True)
class Facts:
    """What is true of one column; the numbers are NaN where there is no valid value.

    ``n_rounded`` are cells of which only a rounded value is known.
    """

    n_valid: int
    n_missing: int
    n_nan: int
    n_inf: int
    n_unique: int
    n_rounded: int
    normalised_variance: float


@dataclass(frozen=True)
class RankedColumns:
    """The feature columns of a table.

    Attributes
    ----------
    index
        Position of each column by name.
    facts
        Facts of each column by name.
    ranks
        (p, n) int32: twice the average rank, less (valid rows + 1), so whole and centred; `MISSING`
        where missing.
    """

    index: Mapping[str, int]
    facts: Mapping[str, Facts]
    ranks: NDArray[np.int32]

    @property
    def n_rows(self) -> int:
        """Rows that take part."""
        return int(self.ranks.shape[1])

    def of(self, name: str) -> NDArray[np.int32]:
        """The ranks of one column, (n,)."""
        column: NDArray[np.int32] = self.ranks[self.index[name]]
        return column

    def is_complete(self, name: str) -> bool:
        """Whether no cell of the column is missing."""
        return self.facts[name].n_missing == 0

    def signature(self, name: str) -> bytes:
        """Equal for two columns exactly when they rank the same valid rows alike or in reverse."""
        ranks = self.of(name)
        turned = np.where(is_valid(ranks) & (self.first_sign(name) > 0), -ranks, ranks)
        return hashlib.sha256(turned.tobytes()).digest()

    def first_sign(self, name: str) -> float:
        """The sign of the first rank off the middle; 0 without one."""
        ranks = self.of(name)
        off = np.flatnonzero(is_valid(ranks) & (ranks != 0))
        return float(np.sign(ranks[off[0]])) if len(off) else 0.0


def rank_columns(table: Table, rows: NDArray[np.int64] | None) -> RankedColumns:
    """Read and rank every feature column of `table` on `rows` (None: all of them)."""
    names = table.features
    n = table.n_rows if rows is None else len(rows)
    ranks = _room(len(names), n)
    facts: dict[str, Facts] = {}
    step = max(1, _CELLS_AT_ONCE // max(n, 1))
    for start in range(0, len(names), step):
        part = names[start : start + step]
        block = read_block(table, part, rows)
        for offset, name in enumerate(part):
            values, counted = block.column(offset)
            valid = np.isfinite(values) if counted is None else counted
            ranks[start + offset], n_unique = _centred_ranks(values, valid)
            facts[name] = _facts(block, offset, values[valid], n_unique)
    return RankedColumns({name: k for k, name in enumerate(names)}, facts, ranks)


def rank_values(values: Mapping[str, NDArray[np.float64]]) -> RankedColumns:
    """Rank columns that are in memory already, NaN where missing."""
    ranks = np.empty((len(values), len(next(iter(values.values())))), dtype=np.int32)
    facts: dict[str, Facts] = {}
    for place, (name, column) in enumerate(values.items()):
        valid = np.isfinite(column)
        ranks[place], n_unique = _centred_ranks(column, valid)
        n_valid = int(np.count_nonzero(valid))
        missing = len(column) - n_valid
        facts[name] = Facts(n_valid, missing, missing, 0, n_unique, 0, math.nan)
    return RankedColumns({name: place for place, name in enumerate(values)}, facts, ranks)


def _room(columns: int, rows: int) -> NDArray[np.int32]:
    """An array of ranks; on disk where memory might not hold it."""
    if columns * rows <= _CELLS_IN_MEMORY:
        return np.empty((columns, rows), dtype=np.int32)
    with tempfile.TemporaryFile() as file:  # its space is freed when the mapping goes
        return np.memmap(file, dtype=np.int32, mode="w+", shape=(columns, rows))


def _centred_ranks(
    values: NDArray[Any], is_there: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], int]:
    """Ranks as `RankedColumns` holds them, and the number of distinct values."""
    valid = np.flatnonzero(is_there)
    order = np.argsort(values[valid], kind="stable")
    ordered = values[valid][order]
    is_first = np.ones(len(ordered), dtype=bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    first = np.flatnonzero(is_first)
    last = np.append(first[1:], len(ordered)) - 1
    group = np.cumsum(is_first) - 1
    # The mean of ranks first + 1 to last + 1, twice, less the number of valid rows + 1.
    twice = (first + last + 2) - (len(ordered) + 1)
    ranks = np.full(len(values), MISSING, dtype=np.int32)
    ranks[valid[order]] = twice[group]
    return ranks, len(first)


def _facts(block: Block, row: int, values: NDArray[Any], n_unique: int) -> Facts:
    if values.dtype.kind != "f" and len(values):  # distances are exact where values are not
        values = (values - values.min()).view(np.uint64).astype(np.float64)
    low, high = (float(values.min()), float(values.max())) if len(values) else (math.nan,) * 2
    return Facts(
        n_valid=len(values),
        n_missing=block.values.shape[1] - len(values),
        n_nan=int(block.n_nan[row]),
        n_inf=int(block.n_inf[row]),
        n_unique=n_unique,
        n_rounded=int(block.n_rounded[row]),
        normalised_variance=_normalised_variance(values, low, high),
    )


def _normalised_variance(values: NDArray[np.float64], low: float, high: float) -> float:
    """Variance over the squared range of the middle 95 %, or of all where that is 0."""
    if not low < high:
        return math.nan if math.isnan(low) else 0.0
    # Powers of two change no digit and keep squares within float64.
    exponent = math.frexp(max(abs(low), abs(high)))[1]
    scaled = np.ldexp(values, -exponent)
    lower, upper = np.quantile(scaled, [0.025, 0.975])
    width = upper - lower if upper > lower else scaled.max() - scaled.min()
    if width == 0:
        return math.inf
    return float((np.std(scaled) / width) ** 2)


def is_valid(ranks: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which cells hold a rank."""
    valid: NDArray[np.bool_] = ranks != MISSING
    return valid


def in_order(names: Sequence[str], columns: RankedColumns) -> list[str]:
    """The names, complete columns first, so that blocks of columns are complete or not."""
    return sorted(names, key=lambda name: (not columns.is_complete(name), name))
