"""The input as the check sees it: every feature column ranked anew.

Covers: reading the columns, their average ranks by sorting, and the facts pass 1 decides on.
Does not cover: comparing columns (see `dpipe.verify.dependence`).

Nothing here comes from `dpipe.kernels` or the rank store: the check would be worth little if it
repeated their mistakes. The ranks lie in a file, so that processes share them and no table is
larger than memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpipe.table import Block, Table, read_block
from dpipe.verify.crew import READ_BYTES, Crew

if TYPE_CHECKING:
    from numpy.typing import NDArray

MISSING = np.int32(np.iinfo(np.int32).min)
"""What stands in `RankedColumns` for a missing cell."""

_CELLS_AT_ONCE = 2**24
_ALL = slice(None)


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
class Mark:
    """How a column ranks the rows, in short.

    Attributes
    ----------
    signature
        Equal for two columns exactly when they rank the same valid rows alike or in reverse.
    first_sign
        The sign of the first rank off the middle; 0 without one.
    """

    signature: bytes
    first_sign: float


@dataclass(frozen=True)
class RankedColumns:
    """Feature columns of a table.

    Attributes
    ----------
    path
        The file of the ranks, (p, n) int32: twice the average rank, less (valid rows + 1), so whole
        and centred; `MISSING` where missing.
    n_rows
        Rows that take part.
    index
        Position of each column in the file, by name.
    facts, marks
        What is known of each column, by name.
    """

    path: str
    n_rows: int
    index: Mapping[str, int]
    facts: Mapping[str, Facts]
    marks: Mapping[str, Mark]

    def of(self, name: str) -> NDArray[np.int32]:
        """The ranks of one column, (n,)."""
        column: NDArray[np.int32] = self.several([name])[0]
        return column

    def several(self, names: Sequence[str], rows: slice = _ALL) -> NDArray[np.int32]:
        """The ranks of columns on some rows, (len(names), r)."""
        start, stop, _ = rows.indices(self.n_rows)
        ranks = np.empty((len(names), max(0, stop - start)), dtype=np.int32)
        with open(self.path, "rb", buffering=0) as file:
            for row, name in zip(ranks, names, strict=True):
                file.seek(4 * (self.index[name] * self.n_rows + start))
                file.readinto(row)  # type: ignore[arg-type]
        return ranks

    def n_valid(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Valid rows of columns."""
        return np.array([self.facts[name].n_valid for name in names], dtype=np.float64)

    def is_complete(self, name: str) -> bool:
        """Whether no cell of the column is missing."""
        return self.facts[name].n_missing == 0

    def part(self, names: Sequence[str]) -> RankedColumns:
        """Some of the columns: what a process needs to know."""
        index, facts, marks = (
            {name: known[name] for name in names} for known in (self.index, self.facts, self.marks)
        )
        return RankedColumns(self.path, self.n_rows, index, facts, marks)  # type: ignore[arg-type]

    def on(self, rows: NDArray[np.int64], names: Sequence[str], crew: Crew) -> RankedColumns:
        """Columns with the ranks they have here, on some rows alone."""
        path = f"{self.path}-some"
        _make_room(path, len(names), len(rows))
        tasks = ((self.part([name]), name, rows, path, place) for place, name in enumerate(names))
        for _ in crew.each(_take, tasks):
            pass
        part = self.part(names)
        index = {name: place for place, name in enumerate(names)}
        return RankedColumns(path, len(rows), index, part.facts, part.marks)

    def ranked_on(
        self, rows: NDArray[np.int64], names: Sequence[str], path: str, crew: Crew
    ) -> RankedColumns:
        """Columns ranked anew among some rows alone, into a file."""
        _make_room(path, len(names), len(rows))
        tasks = ((self.part([name]), name, rows, path, place) for place, name in enumerate(names))
        known = list(crew.each(_rank_again, tasks))
        return RankedColumns(
            path,
            len(rows),
            {name: place for place, name in enumerate(names)},
            {name: facts for name, (facts, _) in zip(names, known, strict=True)},
            {name: mark for name, (_, mark) in zip(names, known, strict=True)},
        )


def rank_columns(
    table: Table,
    names: Sequence[str],
    rows: NDArray[np.int64] | None,
    folder: str | Path,
    crew: Crew,
) -> RankedColumns:
    """Read and rank columns of `table` on `rows` (None: all of them), into a file of `folder`."""
    n = table.n_rows if rows is None else len(rows)
    path = str(Path(folder) / "ranks")
    _make_room(path, len(names), n)
    cells = min(_CELLS_AT_ONCE, max(1, crew.room // READ_BYTES))
    step = max(1, min(cells // max(n, 1), math.ceil(len(names) / (4 * crew.workers))))
    starts = range(0, len(names), step)
    tasks = ((table, names[start : start + step], rows, path, start, n) for start in starts)
    known = [facts for part in crew.each(_rank_some, tasks) for facts in part]
    return RankedColumns(
        path,
        n,
        {name: place for place, name in enumerate(names)},
        {name: facts for name, (facts, _) in zip(names, known, strict=True)},
        {name: mark for name, (_, mark) in zip(names, known, strict=True)},
    )


def rank_values(values: Mapping[str, NDArray[np.float64]], path: str) -> RankedColumns:
    """Rank columns that are in memory already, NaN where missing, into a file."""
    n_rows = len(next(iter(values.values())))
    _make_room(path, len(values), n_rows)
    facts: dict[str, Facts] = {}
    marks: dict[str, Mark] = {}
    for place, (name, column) in enumerate(values.items()):
        facts[name], marks[name] = _put_ranks(path, place, column, np.isfinite(column))
    index = {name: place for place, name in enumerate(values)}
    return RankedColumns(path, n_rows, index, facts, marks)


def _make_room(path: str, columns: int, rows: int) -> None:
    with open(path, "wb") as file:
        file.truncate(4 * columns * rows)


def _put(path: str, place: int, ranks: NDArray[np.int32]) -> None:
    with open(path, "r+b", buffering=0) as file:
        file.seek(4 * place * len(ranks))
        left = ranks.view(np.uint8).data
        while len(left):  # a write may take only a part
            left = left[file.write(left) :]


def _take(
    columns: RankedColumns, name: str, rows: NDArray[np.int64], path: str, place: int
) -> None:
    _put(path, place, columns.of(name)[rows])


def _rank_again(
    columns: RankedColumns, name: str, rows: NDArray[np.int64], path: str, place: int
) -> tuple[Facts, Mark]:
    ranks = columns.of(name)[rows]
    return _put_ranks(path, place, ranks, is_valid(ranks))


def _put_ranks(
    path: str, place: int, values: NDArray[Any], is_there: NDArray[np.bool_]
) -> tuple[Facts, Mark]:
    """Rank a column that is in memory into its place in the file."""
    ranks, ordered, n_unique = _centred_ranks(values, is_there)
    missing = len(values) - len(ordered)
    _put(path, place, ranks)
    return Facts(len(ordered), missing, missing, 0, n_unique, 0, math.nan), _mark(ranks)


def _rank_some(
    table: Table,
    names: Sequence[str],
    rows: NDArray[np.int64] | None,
    path: str,
    first: int,
    n_rows: int,
) -> list[tuple[Facts, Mark]]:
    """Rank columns into their places in the file."""
    known = []
    block = read_block(table, names, rows)
    for offset in range(len(names)):
        values, counted = block.column(offset)
        valid = np.isfinite(values) if counted is None else counted
        ranks, ordered, n_unique = _centred_ranks(values, valid)
        facts = _facts(block, offset, ordered, n_unique)
        del ordered
        _put(path, first + offset, ranks)
        known.append((facts, _mark(ranks)))
    return known


def _mark(ranks: NDArray[np.int32]) -> Mark:
    off = ranks != 0
    off &= is_valid(ranks)
    place = int(off.argmax()) if len(off) else 0
    sign = float(np.sign(ranks[place])) if len(off) and off[place] else 0.0
    if sign > 0:
        ranks = np.where(is_valid(ranks), -ranks, ranks)
    return Mark(hashlib.sha256(ranks.data).digest(), sign)


def _centred_ranks(
    values: NDArray[Any], is_there: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[Any], int]:
    """Ranks as `RankedColumns` holds them, the sorted values, the number of distinct ones."""
    complete = bool(is_there.all())
    valid = values if complete else values[is_there]
    order = np.argsort(valid)
    ordered = valid[order]
    del valid
    is_first = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    first = np.flatnonzero(is_first)
    counts = np.diff(first, append=len(ordered))
    # The mean of ranks first + 1 to first + counts, twice, less the number of valid rows + 1.
    twice = (2 * first + counts - len(ordered)).astype(np.int32)
    n_unique = len(first)
    del first
    among = np.empty(len(ordered), dtype=np.int32)
    among[order] = np.repeat(twice, counts)
    if complete:
        return among, ordered, n_unique
    ranks = np.full(len(values), MISSING, dtype=np.int32)
    ranks[is_there] = among
    return ranks, ordered, n_unique


def _facts(block: Block, row: int, ordered: NDArray[Any], n_unique: int) -> Facts:
    if ordered.dtype.kind != "f" and len(ordered):  # distances are exact where values are not
        ordered = (ordered - ordered[0]).view(np.uint64).astype(np.float64)
    return Facts(
        n_valid=len(ordered),
        n_missing=block.values.shape[1] - len(ordered),
        n_nan=int(block.n_nan[row]),
        n_inf=int(block.n_inf[row]),
        n_unique=n_unique,
        n_rounded=int(block.n_rounded[row]),
        normalised_variance=_normalised_variance(ordered),
    )


def _normalised_variance(ordered: NDArray[np.float64]) -> float:
    """Variance over the squared range of the middle 95 %, or of all where that is 0."""
    if not len(ordered):
        return math.nan
    low, high = float(ordered[0]), float(ordered[-1])
    if not low < high:
        return 0.0
    # Powers of two change no digit and keep squares within float64.
    scaled = np.ldexp(ordered, -math.frexp(max(abs(low), abs(high)))[1])
    lower, upper = (_quantile(scaled, share) for share in (0.025, 0.975))
    width = upper - lower if upper > lower else float(scaled[-1] - scaled[0])
    if width == 0:
        return math.inf
    # From the lowest on: a mean of equal values would carry rounding, and hide a small step.
    return float((np.std(scaled - scaled[0]) / width) ** 2)


def _quantile(ordered: NDArray[np.float64], share: float) -> float:
    """The quantile of sorted values, interpolated linearly (type 7 of Hyndman and Fan)."""
    place = share * (len(ordered) - 1)
    below = min(int(place), len(ordered) - 2)
    return float(ordered[below] + (place - below) * (ordered[below + 1] - ordered[below]))


def is_valid(ranks: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which cells hold a rank."""
    valid: NDArray[np.bool_] = ranks != MISSING
    return valid


def in_order(names: Sequence[str], columns: RankedColumns) -> list[str]:
    """The names, complete columns first, so that blocks of columns are complete or not."""
    return sorted(names, key=lambda name: (not columns.is_complete(name), name))
