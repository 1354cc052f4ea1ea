"""Reading column blocks of a table as float64, missing cells as NaN.

Covers: `read_block`.
Does not cover: decoding one file (see `dpipe.table.decode`), conversion of one array (see
`dpipe.table.convert`), ranks or statistics.

Row groups are decoded a few columns at a time straight into the result, on the calling thread, so
that the memory of a task is its result and little more. Page checksums are verified where the
writer stored them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpipe.errors import InputError, ResourceError
from dpipe.model import Role
from dpipe.table.convert import fill_float64
from dpipe.table.decode import Part, decoder, rows_within
from dpipe.table.record import Table
from dpipe.table.schema import Kind, kind_of
from dpipe.words import counted


@dataclass(frozen=True)
class Block:
    """Columns of a table as float64.

    Attributes
    ----------
    values : NDArray[np.float64]
        (len(names), n) in C order, NaN wherever a cell is missing.
    n_null, n_nan, n_inf : NDArray[np.int64]
        (len(names),) cells that were null (or whose file lacks the column), NaN, infinite.
    n_rounded : NDArray[np.int64]
        (len(names),) whole numbers beyond 2**53, which float64 rounds to the nearest it has.
    """

    values: NDArray[np.float64]
    n_null: NDArray[np.int64]
    n_nan: NDArray[np.int64]
    n_inf: NDArray[np.int64]
    n_rounded: NDArray[np.int64]


def read_block(
    table: Table,
    names: Sequence[str],
    rows: NDArray[np.int64] | None = None,
) -> Block:
    """Columns `names` of a table, every file in order, each byte decoded once.

    Parameters
    ----------
    table : Table
    names : sequence of str
        Numeric columns, each once, in the order of the result.
    rows : NDArray[np.int64] or None
        Strictly increasing global row numbers to read; None reads every row.

    Returns
    -------
    Block
        float64 values (len(names), n) and what is missing in them, counted.

    Raises
    ------
    InputError
        When a column does not exist or is not numeric, or a file changed or is damaged.
    ResourceError
        When there is not enough memory.

    Examples
    --------
    >>> import tempfile, pathlib, pyarrow as pa, pyarrow.parquet as pq
    >>> from dpipe.options import Options
    >>> from dpipe.table import open_table
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> pq.write_table(pa.table({"x": [1.5, None], "y": [True, False]}), folder / "a.parquet")
    >>> block = read_block(open_table([folder], options=Options()), ["y", "x"])
    >>> block.values.tolist(), block.n_null.tolist()
    ([[1.0, 0.0], [1.5, nan]], [0, 1])
    """
    _check_names(table, names)
    rows = _check_rows(table, rows)
    filler = _Filler(names, table.n_rows if rows is None else len(rows), table.coerced)
    for file, start in zip(table.files, table.starts, strict=True):
        local = rows_within(rows, start, file.n_rows)
        count = file.n_rows if local is None else len(local)
        if not count:
            continue
        with decoder(file, table.layouts[file.layout], table.storage_options) as source:
            for part in source.parts(filler.names, local):
                filler.fill(part, file.path)
        own = table.layouts[file.layout].leaves
        filler.lack([name for name in filler.names if name not in own], count)
        filler.advance(count)
    return filler.block()


def _check_names(table: Table, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise ValueError("a column is named twice")
    for name in names:
        column = table.column(name)
        if column.role is Role.NOT_NUMERIC:
            raise _not_numeric(name, column.dtype)


def _not_numeric(name: str, dtype: str) -> InputError:
    return InputError(f"column {name!r} is {dtype}, which is not numeric.")


def _check_rows(table: Table, rows: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    if rows is None:
        return None
    rows = np.asarray(rows, dtype=np.int64)
    inside = len(rows) == 0 or (rows[0] >= 0 and rows[-1] < table.n_rows)
    if not inside or np.any(np.diff(rows) <= 0):
        raise ValueError(f"rows must increase strictly within 0..{table.n_rows - 1}")
    return rows


class _Filler:
    """The result of `read_block` while it fills; `advance` moves on to the next file's rows."""

    def __init__(self, names: Sequence[str], n: int, text: Sequence[str]) -> None:
        self.names = list(names)
        self._place = {name: place for place, name in enumerate(names)}
        self._text = set(text)
        self._counts = [(0, 0, 0, 0)] * len(names)
        self._row = 0
        try:
            self._values = np.empty((len(names), n), dtype=np.float64)
        except MemoryError as error:
            raise ResourceError(
                f"not enough memory for {counted(len(names), 'column')} of {n} rows; "
                "give workers more memory or read fewer columns at once."
            ) from error

    def fill(self, part: Part, path: str) -> None:
        """Put decoded columns into their places."""
        for name, column in part.columns.items():
            kind = kind_of(column.type)
            if kind is Kind.OTHER or (kind is Kind.TEXT and name not in self._text):
                raise _not_numeric(name, f"{column.type} in {path}")
            place = self._place[name]
            row = self._row + part.offset
            for chunk in column.chunks:
                out = self._values[place, row : row + len(chunk)]
                self._count(place, fill_float64(out, chunk))
                row += len(chunk)

    def lack(self, names: Sequence[str], count: int) -> None:
        """Mark the rows of a file that does not have these columns."""
        for name in names:
            self._values[self._place[name], self._row : self._row + count] = math.nan
            self._count(self._place[name], (count, 0, 0, 0))

    def _count(self, place: int, more: Sequence[int]) -> None:
        null, nan, inf, rounded = self._counts[place]
        self._counts[place] = (null + more[0], nan + more[1], inf + more[2], rounded + more[3])

    def advance(self, count: int) -> None:
        """The next file begins `count` rows on."""
        self._row += count

    def block(self) -> Block:
        """The finished block."""
        null, nan, inf, rounded = np.array(self._counts, dtype=np.int64).reshape(-1, 4).T.copy()
        return Block(self._values, null, nan, inf, rounded)
